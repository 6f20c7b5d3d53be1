"""The least that a framework does for a request: FastAPI and pydantic return the body.

It has the route of predictions, so that both servers answer the same requests.
"""

import argparse

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    """The body of a prediction for one history."""

    history: list[int]


@app.post("/tasks/{task}/predict")
async def echo(task: str, body: Body) -> Body:
    """Return the body."""
    return body


@app.get("/readyz")
async def ready() -> dict[str, bool]:
    """Say that the server runs."""
    return {"ready": True}


def main() -> None:
    """``python -m bench.edge_echo --port 8101``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        app, port=options.port, loop="uvloop", http="httptools", access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main()
