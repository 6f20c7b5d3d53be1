"""The registry's steps as Lua: each script is one atomic step in Redis (``prelude``)."""
