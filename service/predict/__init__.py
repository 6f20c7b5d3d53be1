"""A request in an HTTP worker: from parsed instances to encoded answers."""
