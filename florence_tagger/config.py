"""All settings with their names, defaults and descriptions. The only module that reads the environment."""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from florence_tagger.bounds import accepted
from florence_tagger.errors import SettingsError
from florence_tagger.schemas import MAX_TILES

PREFIX = "FLORENCE_"
TilesField = Annotated[int, Field(ge=1, le=MAX_TILES)] | Literal["auto"]  # `Tiles` with their bounds
SAMPLES = Path(__file__).resolve().parent / "web" / "samples"  # pictures and videos for the bundled model
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "ov_models" / "florence-2-tiny"


def default(description: str) -> dict[str, JsonValue]:
    """Return the JSON schema of a default whose value needs a description."""
    return {"default": description}


class Settings(BaseSettings):
    """The settings; each is an environment variable `FLORENCE_<NAME>` and an option `--<name>` of `serve`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a container's service
    port: int = Field(5011, ge=1, le=65535, description="Port to listen on.")
    model_dir: Path = Field(
        DEFAULT_MODEL, description="Folder of the converted model.", json_schema_extra=default("the bundled model")
    )
    device: str = Field(
        "AUTO",
        description="OpenVINO device: `CPU`, `GPU`, `GPU.1`, …; AUTO is the GPU if there is one, else the CPU.",
    )
    precision: Literal["", "f32", "bf16", "f16"] = Field(
        "", description="Inference precision.", json_schema_extra=default("the device's best")
    )
    num_beams: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Beams of the search; 1 is fastest.",
        json_schema_extra=default("the checkpoint's"),
    )
    no_repeat_ngram: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="Length of token runs that must not occur twice in an answer; 0 is off.",
        json_schema_extra=default("the checkpoint's"),
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Maximum tokens of an answer; an object takes about 5.",
        json_schema_extra=default("the checkpoint's"),
    )
    inference_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Inference threads on the CPU.",
        json_schema_extra=default("0: OpenVINO's choice"),
    )
    batch_size: int = Field(8, ge=1, le=64, description="Maximum frames whose answers are decoded together.")
    http_threads: int = Field(
        80,
        ge=4,
        le=1024,
        description="Threads of the server; a tenth of them is reserved for refusals and other routes.",
    )
    queue_size: int = Field(
        64, ge=1, le=100_000, description="Maximum frames that wait for the model, at most 8 of them from one request."
    )
    queue_mb: float = Field(
        512, gt=0, le=1e6, description="Maximum MB of request bodies in memory; a single request alone may exceed it."
    )
    cache_dir: Path | None = Field(
        None, description="Folder for compiled models, for faster starts.", json_schema_extra=default("off")
    )
    aliases: Path | None = Field(
        None,
        description='JSON or YAML file with names to count as another label, as in `{"car": ["taxi"]}`.',
        json_schema_extra=default("none"),
    )
    result_cache: int = Field(
        4096,
        ge=0,
        le=1_000_000,
        description="Number of files whose results are cached, for copies of them; 0 is off.",
    )
    api_key: str = Field(
        "",
        description="Key that requests must send in the header `X-API-Key`.",
        json_schema_extra=default("none: requests need no key"),
    )
    max_body_mb: float = Field(256, gt=0, le=1e5, description="Maximum size of a request body, MB.")
    body_seconds: float = Field(
        60, gt=0, le=86_400, description="Seconds in which the headers and body of a request must arrive."
    )
    max_documents: int = Field(1000, ge=1, le=1_000_000, description="Maximum documents in a request.")
    max_document_mb: float = Field(64, gt=0, le=1e5, description="Maximum size of a file, MB.")
    max_pixels: int = Field(
        100_000_000, ge=1, le=10_000_000_000, description="Maximum pixels of a picture, page or frame."
    )
    max_pages: int = Field(100, ge=1, le=100_000, description="Maximum pages of a TIFF file.")
    video_fps: float = Field(
        1, gt=0, le=1000, description="Frames sampled per second of video; requests may ask for fewer."
    )
    video_max_frames: int = Field(
        32, ge=1, le=10_000, description="Maximum frames sampled from a video; requests may ask for fewer."
    )
    video_max_seconds: float = Field(
        3600,
        gt=0,
        le=1e6,
        description="Seconds from the start of a video that are sampled; requests may ask for fewer.",
    )
    tiles: TilesField = Field(
        1,
        description="Tiles per side of each picture; auto decides by the detections in the whole picture. Requests may "
        "ask for others.",
    )
    reduced_decoding: bool = Field(
        True,
        description="Decode large JPEGs and frames at a reduced scale, still twice the model's input on each side.",
    )
    document_seconds: float = Field(60, gt=0, le=86_400, description="Maximum seconds for decoding a document.")
    decoder_processes: int = Field(
        0,
        ge=0,
        le=64,
        description="Number of decoder processes.",
        json_schema_extra=default("0: one per core, at most 8"),
    )
    decoder_memory_mb: float = Field(600, ge=50, le=1e6, description="Maximum memory for decoding a document, MB.")
    request_seconds: float = Field(
        600, gt=0, le=86_400, description="Seconds after which a request is answered with the documents that are done."
    )
    hang_seconds: float = Field(
        300,
        gt=0,
        le=86_400,
        description="Seconds after which a frame or step counts as a hang, and the worker is restarted.",
    )
    stop_seconds: float = Field(
        30, ge=3, le=3600, description="Seconds that running requests have to finish when the service is stopped."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: text for people, json for programs."
    )

    @field_validator("api_key")
    @classmethod
    def strip_key(cls, value: str) -> str:
        """Strip white space, which HTTP strips from the header, and with which files of keys often end."""
        return value.strip()

    @field_validator("device")
    @classmethod
    def upper_case(cls, value: str) -> str:
        """Return the name of a device in upper case, as in OpenVINO."""
        return value.upper()


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of the environment, overridden by those in `overrides` by field name.

    Raises:
        SettingsError: a value is not accepted; the text has the name of its variable.
    """
    try:
        return Settings(**(overrides or {}))
    except ValidationError as exc:
        messages = dict.fromkeys(setting_error(error["loc"], error["input"]) for error in exc.errors())
        raise SettingsError("; ".join(messages)) from None


def setting_error(location: tuple[int | str, ...], value: Any) -> str:
    """Return the message for an invalid setting: its value, except that of the key, and the accepted values."""
    name = str(location[0])
    schema = Settings.model_json_schema()["properties"].get(name)
    rule = f"accepted is {accepted(schema)}" if schema else "there is no such setting"
    return f"{PREFIX}{name.upper()}={'…' if name == 'api_key' else value}: {rule}"


def unknown_variables() -> list[str]:
    """Return a message for each environment variable with the prefix of the settings that is no setting."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    names = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [f"{name} is no setting{suggestion(name.upper(), known)}" for name in names]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: the most similar known name, if there is one."""
    matches = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; is {matches[0]} meant?" if matches else "."
