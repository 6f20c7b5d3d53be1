"""The HTTP server: application, authentication, OpenAPI and routes."""
