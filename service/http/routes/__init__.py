"""HTTP routes: predictions as plain ASGI, everything else as FastAPI routers."""
