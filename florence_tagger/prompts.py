"""The name of a task and its text -> a prompt, or an error with the accepted values."""

from collections.abc import Sequence
from typing import Any

from florence_tagger.errors import RequestError
from florence_tagger.schemas import Prompt, Task

MAX_TEXT = 2000  # characters; the model uses about 450 tokens, so that a longer text only costs time in the tokenizer
BLANKS = " \t\r\n"
SEPARATOR = "<and>"  # between the objects in a text, as is usual for Florence-2: car<and>person


def task_for(name: Any) -> Any:
    """Return the task of a name in any case, with or without its brackets; any other value unchanged."""
    if not isinstance(name, str):
        return name
    bare = name.strip(BLANKS)
    bare = bare[1:-1] if bare.startswith("<") and bare.endswith(">") else bare
    return next((task for task in Task if task == bare.upper() and bare.isascii()), name)


def prompt_for(task: Task, text: str, classes: Sequence[str] = ()) -> Prompt:
    """Return the prompt of a task and its text, which can be given as classes.

    Raises:
        RequestError: the task needs text or classes and has none, both, or too much.
    """
    if not task.takes_text:
        return Prompt(task)
    text = text.strip(BLANKS)
    if text and classes:
        raise RequestError(f"{task} takes text or classes, not both.")
    text = text or SEPARATOR.join(classes)
    if not text.replace(SEPARATOR, "").strip(BLANKS):
        raise RequestError(f"{task} needs text, which says what to look for, or classes.")
    if len(text) > MAX_TEXT:
        subject = "classes, joined by <and>, have" if classes else "text has"
        raise RequestError(f"The {subject} {len(text)} characters; {MAX_TEXT} are accepted.")
    return Prompt(task, text)


def parse_prompt(name: str, text: str = "", classes: Sequence[str] = ()) -> Prompt:
    """Return the prompt of a task's name and its text; raise RequestError if a value is not accepted."""
    task = task_for(name)
    if not isinstance(task, Task):
        raise RequestError(f"There is no task {name}; accepted are {', '.join(Task)}.")
    return prompt_for(task, text, classes)
