"""What people write of a task and its text -> the prompt that is meant, or what is accepted."""

from collections.abc import Sequence
from typing import Any

from florence_tagger.errors import RequestError
from florence_tagger.schemas import Prompt, Task

MAX_TEXT = 2000  # characters; the model reads some 450 tokens, a text of more is only work for the tokenizer
BLANKS = " \t\r\n"
SEPARATOR = "<and>"  # between the things that a text names, as Florence-2's users write it: car<and>person


def task_named(name: Any) -> Any:
    """A task by its name in any case, with or without its brackets; what is none as it came."""
    if not isinstance(name, str):
        return name
    bare = name.strip(BLANKS)
    bare = bare[1:-1] if bare.startswith("<") and bare.endswith(">") else bare
    return next((task for task in Task if task == bare.upper() and bare.isascii()), name)


def prompt_for(task: Task, text: str, classes: Sequence[str] = ()) -> Prompt:
    """A task with its text, which may be classes; RequestError where what it needs is missing, doubled or too long."""
    if not task.takes_text:
        return Prompt(task)
    text = text.strip(BLANKS)
    if text and classes:
        raise RequestError(f"{task} takes text or classes, not both.")
    text = text or SEPARATOR.join(classes)
    if not text.replace(SEPARATOR, "").strip(BLANKS):
        raise RequestError(f"{task} needs text, which says what to look for, or classes.")
    if len(text) > MAX_TEXT:
        what = "classes, joined by <and>, have" if classes else "text has"
        raise RequestError(f"The {what} {len(text)} characters; {MAX_TEXT} are accepted.")
    return Prompt(task, text)


def prompt_named(name: str, text: str = "", classes: Sequence[str] = ()) -> Prompt:
    """The prompt that a task's name and a text stand for; RequestError where they stand for none."""
    task = task_named(name)
    if not isinstance(task, Task):
        raise RequestError(f"There is no task {name}; accepted are {', '.join(Task)}.")
    return prompt_for(task, text, classes)
