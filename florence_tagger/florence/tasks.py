"""What the tasks ask the model in words, and what is to be known of their answers.

All of it is published with Florence-2: its processor's `task_prompts_without_inputs`, `task_prompts_with_input` and
`banned_grounding_tokens` (processing_florence2.py and preprocessor_config.json of microsoft/Florence-2-large).
"""

from dataclasses import replace

from florence_tagger.florence.decoding import GenerationSettings
from florence_tagger.schemas import Prompt, Task

QUESTIONS = {
    Task.OBJECT_DETECTION: "Locate the objects with category name in the image.",
    Task.DENSE_REGION_CAPTION: "Locate the objects in the image, with their descriptions.",
    Task.REGION_PROPOSAL: "Locate the region proposals in the image.",
    Task.OPEN_VOCABULARY_DETECTION: "Locate {text} in the image.",
    Task.PHRASE_GROUNDING: "Locate the phrases in the caption: {text}",
}

REGION = "region"  # the label of region proposals, which have none

# What a caption's phrases may be that stand for no thing to count.
BANNED_PHRASES = frozenset(
    (
        *("I", "a", "a group", "a set", "all", "an", "another", "any", "anybody", "anyone", "anything", "each"),
        *("each other", "everybody", "everyone", "everything", "few", "he", "her", "hers", "herself", "him", "himself"),
        *("his", "image", "images", "it", "its", "itself", "lots", "many", "me", "mine", "myself", "nobody", "none"),
        *("one", "one another", "oneself", "other objects", "our", "ours", "ourselves", "several", "she", "some"),
        *("somebody", "someone", "something", "that", "the", "the image", "their", "theirs", "them", "themselves"),
        *("these", "they", "this", "those", "us", "we", "what", "which", "who", "whom", "whose", "you", "your"),
        *("yours", "yourself", "yourselves"),
    )
)


def prompt_text(prompt: Prompt) -> str:
    """A prompt in words."""
    return QUESTIONS[prompt.task].format(text=prompt.text.strip())


def generation_settings_for(task: Task, own: GenerationSettings) -> GenerationSettings:
    """How to decode the answer to a task.

    Open-vocabulary detection repeats its label at every box: without repeated 3-grams a label of three or more tokens
    could be said only once.
    """
    return replace(own, no_repeat_ngram_size=0) if task is Task.OPEN_VOCABULARY_DETECTION else own
