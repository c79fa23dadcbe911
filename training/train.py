"""Training of the bundled model: `python -m training.train`, repeated until it is finished.

Training resumes from the state of the previous run, else from the weights of its checkpoint or of another unfinished
one, else it starts from scratch. The averaged weights are written as a checkpoint beside the state, with a log (CSV)
and a plot of the curves.
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
from training.batches import BATCH, VALIDATION, Batches, model_input
from training.objective import Losses, Objective
from training.options import SEED, Command
from training.scenes import Scene, World, draw_scene
from training.score import Score, detect_objects, score
from training.tiny_model import build_model, build_processor, build_tokenizer

RATE, WARM_UP, MIN_RATE = 1e-3, 200, 0.02  # MIN_RATE: share of RATE
WEIGHT_DECAY, BETAS, MAX_GRADIENT_NORM = 0.02, (0.9, 0.98), 1.0
EMA_DECAY = 0.998
HAS_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # else it is emulated, ten times slower than f32
RUN, COMMITTED = (Path(__file__).parent / name for name in ("run", "florence-2-tiny"))
STATE, LOG, CHECKPOINT, PROGRESS = "state.pt", "log.csv", "checkpoint", "training.json"
STATEFUL, COUNTERS = ("objective", "average", "optimizer"), ("step", "warm_up_start", "minutes")
DENSE_ONLY = 0.06  # initial share of the training, with the dense head's loss alone
INITIAL_SIGMA, FINAL_SIGMA = 8.0, 4.0  # width of a location's target distribution, in bins
VALIDATION_SCENES = 150
COUNT = click.IntRange(min=1)
LOSSES, SCORES = ([field.name for field in fields(group)] for group in (Losses, Score))


@dataclass
class Training:
    """The state of training, and the tokenizer.

    Attributes:
        average: moving average of the weights over some hundred steps, which counts better than the last weights.
        step: number of steps so far.
        warm_up_start: step at which the optimizer started.
        minutes: time of training so far.
    """

    objective: Objective
    average: Florence2ForConditionalGeneration
    optimizer: torch.optim.Optimizer
    tokenizer: PreTrainedTokenizerFast
    step: int = 0
    warm_up_start: int = 0
    minutes: float = 0.0

    def save(self, path: Path) -> None:
        """Write the state to a new file and then rename it, so that an interrupted run loses nothing."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        torch.save(parts | {name: getattr(self, name) for name in COUNTERS}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Restore a state; ClickException if the file is not one."""
        try:
            state = torch.load(path, weights_only=True)
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            for name in COUNTERS:
                setattr(self, name, state[name])
        except Exception as exc:  # torch raises many kinds of errors for files that it did not write
            reason = f"{path} is damaged, or of another version. Without it training goes on from a checkpoint."
            raise click.ClickException(reason) from exc

    def start_from(self, folder: Path) -> None:
        """Restore the weights and the step of a checkpoint; the dense heads and the optimizer start from scratch."""
        weights = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
        self.objective.model.load_state_dict(weights)
        self.average.load_state_dict(weights)
        progress = json.loads((folder / PROGRESS).read_text())
        self.step, self.minutes = progress["step"], progress["minutes"]
        self.warm_up_start = self.step

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average toward the weights, faster in the first steps."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, weight in zip(self.average.parameters(), self.objective.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


def prepare(seed: int) -> Training:
    """Return the state before the first step."""
    tokenizer = build_tokenizer()
    objective = Objective(build_model(tokenizer, seed), tokenizer)
    matrices = [weight for weight in objective.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in objective.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    return Training(objective, copy.deepcopy(objective.model).eval(), optimizer, tokenizer)


def rate_at(step: int, steps: int, warm_up_start: int) -> float:
    """Return the learning rate: warm-up after a start without a state, constant for half of the steps, linear decay."""
    decay = max(MIN_RATE, 1 - max(0.0, step / steps - 0.5) * 2 * (1 - MIN_RATE))
    return RATE * min(1.0, (step - warm_up_start + 1) / WARM_UP) * decay


def train(training: Training, steps: int, seed: int) -> Iterator[Losses]:
    """Train step by step, and yield the losses of each step."""
    torch.set_flush_denormal(True)  # subnormal numbers are slow; set only here because it applies to the entire process
    batches = Batches(training.tokenizer, steps, seed)
    order = range(training.step, steps)
    loader = DataLoader(
        batches, batch_size=None, sampler=order, num_workers=1, prefetch_factor=8, multiprocessing_context="spawn"
    )
    objective, weights = training.objective, list(training.objective.parameters())
    for step, batch in zip(order, loader, strict=True):
        progress = step / steps
        for group in training.optimizer.param_groups:
            group["lr"] = rate_at(step, steps, training.warm_up_start)
        objective.train()
        torch.manual_seed(step)
        sigma = INITIAL_SIGMA + (FINAL_SIGMA - INITIAL_SIGMA) * progress
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
            loss, losses = objective(batch, step, sigma, progress < DENSE_ONLY)
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
        training.optimizer.step()
        training.step = step + 1
        training.update_average()
        yield losses


def validation_scenes() -> list[Scene]:
    """Draw the scenes on which progress is measured; no decision depends on other scenes."""
    rng = np.random.default_rng([VALIDATION, 0])
    return [draw_scene(rng, World()) for _ in range(VALIDATION_SCENES)]


def validate(training: Training, scenes: list[Scene]) -> Score:
    """Return the score of the averaged weights with greedy decoding."""
    pictures = torch.from_numpy(np.stack([model_input(scene.pixels) for scene in scenes]))
    detections = detect_objects(training.average, training.tokenizer, pictures)
    return score(detections, [scene.relative for scene in scenes])


def write_checkpoint(training: Training, folder: Path, result: Score, log: Path) -> None:
    """Write a checkpoint of the averaged weights in fp16, with the log and the progress needed to resume from it."""
    new, processor = folder.with_suffix(".new"), build_processor(training.tokenizer)
    copy.deepcopy(training.average).half().save_pretrained(new)
    for component in (processor, processor.image_processor, processor.tokenizer):
        component.save_pretrained(new)
    progress = {"step": training.step, "minutes": round(training.minutes, 1), **asdict(result)}
    (new / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n")
    shutil.copy(log, new / LOG)
    shutil.copy(COMMITTED / "LICENSE", new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def read_step(folder: Path) -> int | None:
    """Return the step of a checkpoint, or None if there is no checkpoint; ClickException if the file is invalid."""
    path = folder / PROGRESS
    try:
        return int(json.loads(path.read_text())["step"]) if path.exists() else None
    except (ValueError, TypeError, KeyError) as exc:
        raise click.ClickException(f"{path} names no step.") from exc


def append_log(path: Path, row: dict[str, float]) -> None:
    """Append a row to the log, with a header if the log is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["step", "minutes", "rate", *LOSSES, *SCORES])
        if new:
            writer.writeheader()
        writer.writerow({name: round(value, 6) for name, value in row.items()})


def draw_curves(log: Path) -> None:
    """Plot losses and accuracy over the steps, as a picture beside the log."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, (losses, accuracy) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    steps = [int(row["step"]) for row in rows]
    for axes, names, title in (
        (losses, LOSSES, "loss"),
        (accuracy, SCORES, f"of {VALIDATION_SCENES} scenes"),
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
    """Return the state of the previous run, else of a checkpoint with its log, else the state before the first step."""
    training = prepare(seed)
    if (run / STATE).exists():
        training.load(run / STATE)
    elif (checkpoint := choose_checkpoint(run, start, steps)) is not None:
        training.start_from(checkpoint)
        shutil.copy(checkpoint / LOG, run / LOG)
    else:
        (run / LOG).unlink(missing_ok=True)  # the log of a run whose state was removed
    return training


def choose_checkpoint(run: Path, start: Path, steps: int) -> Path | None:
    """Return the run's own checkpoint, else `start` if it is not finished, else None."""
    if read_step(run / CHECKPOINT) is not None:
        return run / CHECKPOINT
    step = read_step(start)
    return start if step is not None and step < steps else None


def nan_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; most losses are NaN in the steps of the dense head alone."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def save_progress(training: Training, recent: Sequence[Losses], scenes: list[Scene], run: Path) -> str:
    """Write state, log, curves and checkpoint after some steps; return a line about their results."""
    result = validate(training, scenes)
    means = {name: nan_mean([getattr(losses, name) for losses in recent]) for name in LOSSES}
    rate = training.optimizer.param_groups[0]["lr"]
    training.save(run / STATE)  # first, so that no step is repeated if the run is interrupted here
    append_log(run / LOG, {"step": training.step, "minutes": training.minutes, "rate": rate, **means, **asdict(result)})
    draw_curves(run / LOG)
    write_checkpoint(training, run / CHECKPOINT, result, run / LOG)
    loss_text = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    score_text = f"{result.exact:.1%} counted exactly, F1 {result.f1:.3f}"
    return f"step {training.step:,}, {training.minutes:.0f} min: {score_text}; {loss_text}"


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
        if read_step(run / CHECKPOINT) != training.step:  # the last run was interrupted before it wrote the checkpoint
            write_checkpoint(training, run / CHECKPOINT, validate(training, validation_scenes()), run / LOG)
        click.echo(f"All {steps:,} steps are taken: {run / CHECKPOINT} has the result. Remove {run} to begin anew.")
        return
    scenes, started, minutes_before = validation_scenes(), time.monotonic(), training.minutes
    recent: list[Losses] = []
    with counting_bar() as progress:
        bar = progress.add_task("steps", total=steps, completed=training.step)
        for losses in train(training, steps, seed):
            training.minutes = minutes_before + (time.monotonic() - started) / 60
            ended = training.step == steps or training.minutes - minutes_before >= minutes
            recent.append(losses)
            progress.update(bar, completed=training.step)
            if ended or training.step % between == 0:
                progress.console.print(save_progress(training, recent, scenes, run), highlight=False, soft_wrap=True)
                recent = []
            if ended:
                break


if __name__ == "__main__":
    main()
