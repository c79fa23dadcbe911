"""All settings: their names, defaults and meaning. The only reader of the environment."""

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
SAMPLES = Path(__file__).resolve().parent / "web" / "samples"  # pictures that the bundled model counts
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "ov_models" / "florence-2-tiny"


def default(words: str) -> dict[str, JsonValue]:
    """What a default is called where its value says little."""
    return {"default": words}


class Settings(BaseSettings):
    """Each field is an environment variable `FLORENCE_<NAME>` and an option `--<name>` of the command line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a container's service
    port: int = Field(5011, ge=1, le=65535, description="Port to listen on.")
    model_dir: Path = Field(
        DEFAULT_MODEL, description="Folder of the converted model.", json_schema_extra=default("the bundled model")
    )
    device: str = Field(
        "AUTO",
        description="OpenVINO device: `CPU`, `GPU`, `GPU.1`, … exactly; AUTO is the GPU if there is one, else the CPU.",
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
        description="No run of so many tokens occurs twice in an answer; 0 is off.",
        json_schema_extra=default("the checkpoint's"),
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Most tokens of an answer, about 5 for each object.",
        json_schema_extra=default("the checkpoint's"),
    )
    inference_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads of inference on the CPU.",
        json_schema_extra=default("0, which is OpenVINO's choice"),
    )
    batch_size: int = Field(8, ge=1, le=64, description="Most frames whose answers are decoded together.")
    http_threads: int = Field(
        80, ge=4, le=1024, description="Threads of the server; a tenth of them is kept for refusals and other routes."
    )
    queue_size: int = Field(
        64, ge=1, le=100_000, description="Most frames that wait for the model, at most 8 of a request."
    )
    queue_mb: float = Field(
        512, gt=0, le=1e6, description="Most MB of bodies that are held; one request alone may have more."
    )
    cache_dir: Path | None = Field(
        None, description="Folder for compiled models, for faster starts.", json_schema_extra=default("off")
    )
    aliases: Path | None = Field(
        None,
        description='JSON or YAML file of names that are counted as another label, as in `{"car": ["taxi"]}`.',
        json_schema_extra=default("none"),
    )
    result_cache: int = Field(
        4096,
        ge=0,
        le=1_000_000,
        description="Files whose answers are kept for when the same bytes come again; 0 is off.",
    )
    api_key: str = Field(
        "",
        description="Key that requests must have in their header `X-API-Key`.",
        json_schema_extra=default("none: whoever reaches the port is served"),
    )
    max_body_mb: float = Field(256, gt=0, le=1e5, description="Largest body of a request, MB.")
    body_seconds: float = Field(
        60, gt=0, le=86_400, description="Seconds within which a request's headers and body must have arrived."
    )
    max_documents: int = Field(1000, ge=1, le=1_000_000, description="Most documents in a request.")
    max_document_mb: float = Field(64, gt=0, le=1e5, description="Largest file, MB.")
    max_pixels: int = Field(
        100_000_000, ge=1, le=10_000_000_000, description="Most pixels of a picture, page or frame."
    )
    max_pages: int = Field(100, ge=1, le=100_000, description="Most pages of a TIFF file.")
    video_fps: float = Field(
        1, gt=0, le=1000, description="Frames of a second of video that are looked at; requests may ask for fewer."
    )
    video_max_frames: int = Field(
        32, ge=1, le=10_000, description="Most frames of a video that are looked at; requests may ask for fewer."
    )
    video_max_seconds: float = Field(
        3600, gt=0, le=1e6, description="Seconds of a video, from its start, that are looked at; likewise."
    )
    tiles: TilesField = Field(
        1,
        description="Tiles a side that pictures are looked at in; auto looks at the whole first. Requests may ask for "
        "others.",
    )
    reduced_decoding: bool = Field(
        True,
        description="Large JPEGs and frames are decoded at a scale that is still twice the model's input on each side.",
    )
    document_seconds: float = Field(60, gt=0, le=86_400, description="Most seconds of decoding for a document.")
    decoder_processes: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that decode.",
        json_schema_extra=default("0, which is one for each core, at most 8"),
    )
    decoder_memory_mb: float = Field(
        600, ge=50, le=1e6, description="Most memory that decoding a document may take, MB."
    )
    request_seconds: float = Field(
        600, gt=0, le=86_400, description="Seconds after which a request is answered with what is done."
    )
    hang_seconds: float = Field(
        300,
        gt=0,
        le=86_400,
        description="Seconds at one frame or step after which the model hangs and the worker is started anew.",
    )
    stop_seconds: float = Field(
        30, ge=3, le=3600, description="Seconds that requests have to finish once the service is told to stop."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of the log's lines: text for people, json for programs."
    )

    @field_validator("api_key")
    @classmethod
    def without_blanks(cls, value: str) -> str:
        """HTTP takes them off the header; files that keys are kept in often end with one."""
        return value.strip()

    @field_validator("device")
    @classmethod
    def upper_case(cls, value: str) -> str:
        return value.upper()


def load_settings(given: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the environment, those `given` by field name going first.

    Raises:
        SettingsError: a value is not accepted; names its variable.
    """
    try:
        return Settings(**(given or {}))
    except ValidationError as exc:
        refusals = dict.fromkeys(refusal(error["loc"], error["input"]) for error in exc.errors())
        raise SettingsError("; ".join(refusals)) from None


def refusal(place: tuple[int | str, ...], value: Any) -> str:
    """What is wrong with a setting, and what is accepted; never the key's value."""
    name = str(place[0])
    schema = Settings.model_json_schema()["properties"].get(name)
    rule = f"accepted is {accepted(schema)}" if schema else "there is no such setting"
    return f"{PREFIX}{name.upper()}={'…' if name == 'api_key' else value}: {rule}"


def unknown_variables() -> list[str]:
    """What is wrong with the variables of the environment that look like settings and are none."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    names = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [f"{name} is no setting{meant(name.upper(), known)}" for name in names]


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the known name that is most like another, if any is."""
    likely = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; is {likely[0]} meant?" if likely else "."
