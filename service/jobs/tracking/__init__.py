"""Trackers that can follow a training: one module for each, imported only if it is asked for.

A module has ``open_tracker(target, name)``, which returns a ``Tracker`` or raises an error of this
package, before the data are read. Its library is an extra of the distribution.
"""
