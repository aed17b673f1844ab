"""Flows that tell and read records. Each has its twin in crates/e2e/src/scenarios/told.rs."""

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.events import emit_event
from prefect.variables import Variable


@task
def report():
    create_table_artifact([{"name": "a", "size": 1}], key="table", description="Of a task.")


@flow(name="artifacts")
def artifacts():
    create_markdown_artifact("# Title", key="markdown", description="Text.")
    create_link_artifact("https://example.org/a b", "here", key="link")
    create_image_artifact("https://example.org/a.png", key="image")
    progress = create_progress_artifact(0.0, key="progress")
    update_progress_artifact(progress, progress=100.0)
    report()


@task
def tell():
    logger = get_run_logger()
    logger.debug("a task's debug")
    logger.info("a task's info\nin two lines")
    logger.warning("a task's warning")
    logger.error("a task's error")


@flow(name="logs")
def logs():
    logger = get_run_logger()
    logger.debug("debug")
    logger.info("info")
    logger.warning("warning")
    logger.error("error")
    tell()


@flow(name="records")
def records():
    logger = get_run_logger()
    logger.info(Variable.get("text"))
    logger.info(str(Variable.get("object")["size"]))
    logger.info(str(Variable.get("missing")))
    logger.info(str(len(Secret.load("password").get())))
    logger.info(str(len(Block.load("secret/password").value.get_secret_value())))


@task(tags=["measuring"])
def measure():
    emit_event(
        "dataset.measured",
        {"prefect.resource.id": "dataset.7", "prefect.resource.name": "seven"},
        payload={"size": 3},
    )


@flow(name="events")
def events():
    emit_event(
        "dataset.arrived",
        {"prefect.resource.id": "dataset.7"},
        related=[{"prefect.resource.id": "tape.3", "prefect.resource.role": "tape"}],
        payload={"files": 2},
    )
    measure()
