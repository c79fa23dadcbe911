"""Trains the bundled model: `python -m training.train`, as often as it takes.

It goes on from the state that the run before left, where there is none from the weights of its checkpoint or of another
that is not finished, else from nothing.
What it has learnt is written as a checkpoint beside the state, with a log (CSV) and a picture of the curves.
"""

import copy
import csv
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from convert.progress_bars import counting_bar
from convert.quiet import quiet_libraries
from training.batches import BATCH, CHOOSING, Batches, model_input
from training.objective import Losses, Objective
from training.options import SEED, Command
from training.scenes import Scene, World, draw_scene
from training.score import Score, answer, score
from training.tiny_model import build_model, build_processor, build_tokenizer

RATE, WARM_UP, KEPT_RATE = 1e-3, 200, 0.02
DECAY, BETAS, LARGEST_GRADIENT = 0.02, (0.9, 0.98), 1.0
AVERAGING = 0.998
HAS_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # elsewhere it is emulated, ten times slower than f32
RUN, COMMITTED = (Path(__file__).parent / name for name in ("run", "florence-2-tiny"))
STATE, LOG, CHECKPOINT, ABOUT = "state.pt", "log.csv", "checkpoint", "training.json"
STATEFUL, COUNTED = ("objective", "average", "optimiser"), ("step", "begun", "minutes")
DENSE_ONLY = 0.06  # of the training
WIDEST, NARROWEST = 8.0, 4.0  # bins of a location's target, at the start and at the end
CHOSEN_SCENES = 150
COUNT = click.IntRange(min=1)
LOSSES, SCORES = ([field.name for field in fields(kind)] for kind in (Losses, Score))


@dataclass
class Training:
    """What training changes, and the tokenizer.

    Attributes:
        average: of the weights over the last some hundred steps, which counts better than the last ones.
        step, minutes: taken so far.
        begun: the step since which the optimiser has been learning.
    """

    objective: Objective
    average: Florence2ForConditionalGeneration
    optimiser: torch.optim.Optimizer
    tokenizer: PreTrainedTokenizerFast
    step: int = 0
    begun: int = 0
    minutes: float = 0.0

    def save(self, path: Path) -> None:
        """Writes the state beside its place and then puts it there: a run that is ended meanwhile loses nothing."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        torch.save(parts | {name: getattr(self, name) for name in COUNTED}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Goes on from a state; ClickException where it is none."""
        try:
            state = torch.load(path, weights_only=True)
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            for name in COUNTED:
                setattr(self, name, state[name])
        except Exception as exc:  # torch says in many ways that a file is not what it wrote
            reason = f"{path} is damaged, or of another version. Without it training goes on from a checkpoint."
            raise click.ClickException(reason) from exc

    def start_from(self, folder: Path) -> None:
        """Takes a checkpoint's weights and the step it was written at; the dense heads and the optimiser begin anew."""
        weights = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
        self.objective.model.load_state_dict(weights)
        self.average.load_state_dict(weights)
        about = json.loads((folder / ABOUT).read_text())
        self.step, self.minutes = about["step"], about["minutes"]
        self.begun = self.step

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average towards the weights, at first by much."""
        kept = min(AVERAGING, (1 + self.step) / (10 + self.step))
        for mean, weight in zip(self.average.parameters(), self.objective.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - kept)


def prepare(seed: int) -> Training:
    """Everything as it is before the first step."""
    tokenizer = build_tokenizer()
    objective = Objective(build_model(tokenizer, seed), tokenizer)
    matrices = [weight for weight in objective.parameters() if weight.ndim >= 2]
    rest = [weight for weight in objective.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    return Training(objective, copy.deepcopy(objective.model).eval(), optimiser, tokenizer)


def rate_at(step: int, steps: int, begun: int) -> float:
    """Warm-up after each start without a state, constant for half of the steps, then falling in a line."""
    falling = max(KEPT_RATE, 1 - max(0.0, step / steps - 0.5) * 2 * (1 - KEPT_RATE))
    return RATE * min(1.0, (step - begun + 1) / WARM_UP) * falling


def learn(training: Training, steps: int, seed: int) -> Iterator[Losses]:
    """Takes one step after the other, and yields its losses after each."""
    torch.set_flush_denormal(True)  # subnormal numbers are slow; for all of the process, therefore not before this
    batches = Batches(training.tokenizer, steps, seed)
    order = range(training.step, steps)
    loader = DataLoader(
        batches, batch_size=None, sampler=order, num_workers=1, prefetch_factor=8, multiprocessing_context="spawn"
    )
    objective, weights = training.objective, list(training.objective.parameters())
    for step, batch in zip(order, loader, strict=True):
        progress = step / steps
        for group in training.optimiser.param_groups:
            group["lr"] = rate_at(step, steps, training.begun)
        objective.train()
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
            loss, losses = objective(batch, step, WIDEST + (NARROWEST - WIDEST) * progress, progress < DENSE_ONLY)
        training.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
        training.optimiser.step()
        training.step = step + 1
        training.update_average()
        yield losses


def choosing_scenes() -> list[Scene]:
    """The scenes by which progress is told; no others decide anything."""
    rng = np.random.default_rng([CHOOSING, 0])
    return [draw_scene(rng, World()) for _ in range(CHOSEN_SCENES)]


def look(training: Training, scenes: list[Scene]) -> Score:
    """How well the averaged weights count, greedily."""
    pictures = torch.from_numpy(np.stack([model_input(scene.pixels) for scene in scenes]))
    return score(answer(training.average, training.tokenizer, pictures), [scene.relative for scene in scenes])


def write_checkpoint(training: Training, folder: Path, result: Score, log: Path) -> None:
    """The averaged weights in fp16 with all that a checkpoint has, and what is to be known to go on from them."""
    new, processor = folder.with_suffix(".new"), build_processor(training.tokenizer)
    copy.deepcopy(training.average).half().save_pretrained(new)
    for part in (processor, processor.image_processor, processor.tokenizer):
        part.save_pretrained(new)
    about = {"step": training.step, "minutes": round(training.minutes, 1), **asdict(result)}
    (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    shutil.copy(log, new / LOG)
    shutil.copy(COMMITTED / "LICENSE", new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint was written at, None where there is none; ClickException where it does not say."""
    about = folder / ABOUT
    try:
        return int(json.loads(about.read_text())["step"]) if about.exists() else None
    except (ValueError, TypeError, KeyError) as exc:
        raise click.ClickException(f"{about} names no step.") from exc


def append_log(path: Path, row: dict[str, float]) -> None:
    """Adds a row to the log."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["step", "minutes", "rate", *LOSSES, *SCORES])
        if new:
            writer.writeheader()
        writer.writerow({name: round(value, 6) for name, value in row.items()})


def draw_curves(log: Path) -> None:
    """Losses and accuracy over the steps, as a picture beside the log."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, (losses, accuracy) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    steps = [int(row["step"]) for row in rows]
    for axes, names, title in (
        (losses, LOSSES, "loss"),
        (accuracy, SCORES, f"of {CHOSEN_SCENES} scenes"),
    ):
        for name in names:
            axes.plot(steps, [float(row[name]) for row in rows], label=name)
        axes.set_ylabel(title)
        axes.legend()
        axes.grid(alpha=0.3)
    losses.set_yscale("log")
    accuracy.set_xlabel(f"step, {BATCH} pictures each")
    figure.savefig(log.with_suffix(".png"), dpi=110)
    plt.close(figure)


def restore(run: Path, start: Path, steps: int, seed: int) -> Training:
    """Training as it was left, else from a checkpoint, else as it is before the first step, with its log."""
    training = prepare(seed)
    if (run / STATE).exists():
        training.load(run / STATE)
    elif (checkpoint := choose_checkpoint(run, start, steps)) is not None:
        training.start_from(checkpoint)
        shutil.copy(checkpoint / LOG, run / LOG)
    else:
        (run / LOG).unlink(missing_ok=True)  # of a run whose state was removed
    return training


def choose_checkpoint(run: Path, start: Path, steps: int) -> Path | None:
    """The run's own checkpoint, else the other one if it is not finished."""
    if step_of(run / CHECKPOINT) is not None:
        return run / CHECKPOINT
    step = step_of(start)
    return start if step is not None and step < steps else None


def mean_of(values: Sequence[float]) -> float:
    """The mean of what was measured, which in the steps of the dense head alone is nothing."""
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan


def keep(training: Training, taken: Sequence[Losses], scenes: list[Scene], run: Path) -> str:
    """Writes all that there is after some steps, and says in a line how well they went."""
    result = look(training, scenes)
    means = {name: mean_of([getattr(one, name) for one in taken]) for name in LOSSES}
    rate = training.optimiser.param_groups[0]["lr"]
    training.save(run / STATE)  # first: a run that is ended here takes no step twice
    append_log(run / LOG, {"step": training.step, "minutes": training.minutes, "rate": rate, **means, **asdict(result)})
    draw_curves(run / LOG)
    write_checkpoint(training, run / CHECKPOINT, result, run / LOG)
    losses = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    counted = f"{result.exact:.1%} counted exactly, F1 {result.f1:.3f}"
    return f"step {training.step:,}, {training.minutes:.0f} min: {counted}; {losses}"


@click.command(cls=Command)
@click.option("--run", type=click.Path(path_type=Path), default=RUN, help="What a run writes; training/run.")
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    default=COMMITTED,
    help="Unfinished checkpoint to go on from where the run has none; training/florence-2-tiny.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=95.0,
    show_default=True,
    help="Most that this run trains; it starts and ends in some more.",
)
@click.option(
    "--steps", type=COUNT, default=28_000, show_default=True, help="Of the whole training; rate and scenes follow it."
)
@click.option(
    "--between", type=COUNT, default=500, show_default=True, help="Steps between two looks at how well it counts."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of scenes and weights.")
def main(run: Path, start: Path, minutes: float, steps: int, between: int, seed: int) -> None:
    """Trains, or goes on with it."""
    quiet_libraries()
    run.mkdir(parents=True, exist_ok=True)
    training = restore(run, start, steps, seed)
    if training.step >= steps:
        if step_of(run / CHECKPOINT) != training.step:  # the last run was ended on its last lines
            write_checkpoint(training, run / CHECKPOINT, look(training, choosing_scenes()), run / LOG)
        click.echo(f"All {steps:,} steps are taken: {run / CHECKPOINT} has the result. Remove {run} to begin anew.")
        return
    scenes, started, before = choosing_scenes(), time.monotonic(), training.minutes
    taken: list[Losses] = []
    with counting_bar() as progress:
        bar = progress.add_task("steps", total=steps, completed=training.step)
        for losses in learn(training, steps, seed):
            training.minutes = before + (time.monotonic() - started) / 60
            ended = training.step == steps or training.minutes - before >= minutes
            taken.append(losses)
            progress.update(bar, completed=training.step)
            if ended or training.step % between == 0:
                progress.console.print(keep(training, taken, scenes, run), highlight=False, soft_wrap=True)
                taken = []
            if ended:
                break


if __name__ == "__main__":
    main()
