"""Python flows for the image of the Python peer."""

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact


@task
def compose(name: str) -> str:
    return f"Hello, {name}!"


@flow(log_prints=True)
def greet(name: str = "world") -> str:
    """Greets by a task, a log line and an artifact."""
    greeting = compose(name)
    get_run_logger().info("greeting ready")
    print(greeting)
    create_markdown_artifact(key="greeting", markdown=greeting)
    return greeting


@flow
def empty() -> None:
    """Does nothing: what remains is the cost of a run."""


@flow
def fail() -> None:
    """Fails with a message of its own."""
    raise ValueError("this flow always fails")
