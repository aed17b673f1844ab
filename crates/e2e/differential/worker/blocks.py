"""Saves the blocks that cases refer to; prints the id of the registry's credentials."""

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect_docker.credentials import DockerRegistryCredentials


class Settings(Block):
    _block_type_slug = "settings"
    text: str
    number: int
    nested: dict


Secret(value="a secret").save("text")
Secret(value={"user": "u", "list": ["first", 2]}).save("nested")
Secret(value="with {{ prefect.variables.text }}").save("refers")
Settings(text="t", number=5, nested={"a": {"b": "deep"}, "items": [{"name": "x"}]}).save("site")
credentials = DockerRegistryCredentials(username="u", password="p", registry_url="localhost:1")
print(credentials.save("registry"))
