"""Compiles all graphs with Intel's real driver for real chips, without having one: `make gpu-compile`.

Each model on each chip is a process of its own with a time limit. Its result is kept below `build/`, so that a run that
was interrupted goes on, and what has changed, be it code, model or driver, is compiled again.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click

from deploy.debian import ROOT
from florence_tagger.errors import TaggerError
from florence_tagger.florence.manifest import MANIFEST
from florence_tagger.settings_table import replace_section
from gpu.compilation import Result, read_result
from gpu.emulation import SetupError
from gpu.models import GEOMETRIES, PRECISIONS, VARIANTS, Variant, hash_of, make_folder, sources
from gpu.report import BEGIN, END, findings, tables
from gpu.simulation import BUILD, CHIPS, SIMULATION, Chip, Driver, set_up_driver


def compile_for(driver: Driver, chip: Chip, variant: Variant, seconds: float) -> Result:
    """Return what comes of a model on a chip in at most some seconds, by a process now or by one that did not fail."""
    if (before := compiled_before(driver, chip, variant)) is not None:
        return before
    outcome = {"fingerprint": fingerprint(driver, chip, variant.folder), **run(driver, chip, variant.folder, seconds)}
    if not outcome["failure"]:
        keep(kept_at(chip, variant), outcome)
    return read_result(chip.name, variant.name, outcome["lines"], outcome["failure"])


def compiled_before(driver: Driver, chip: Chip, variant: Variant) -> Result | None:
    """Return what came of a model on a chip before, None where that is not kept or something has changed since."""
    kept = kept_at(chip, variant)
    if not kept.is_file() or not (variant.folder / MANIFEST).is_file():
        return None
    outcome = json.loads(kept.read_text())
    if outcome["fingerprint"] != fingerprint(driver, chip, variant.folder):
        return None
    return read_result(chip.name, variant.name, outcome["lines"], outcome["failure"])


def kept_at(chip: Chip, variant: Variant) -> Path:
    """Return the file that keeps what came of a model on a chip."""
    return BUILD / "results" / f"{chip.name}-{variant.geometry}-{variant.precision}.json"


def keep(path: Path, outcome: dict[str, Any]) -> None:
    """Write an outcome to a file, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome, indent=1) + "\n")
    part.replace(path)


def fingerprint(driver: Driver, chip: Chip, folder: Path) -> str:
    """Return a hash of all that decides what is compiled, and how."""
    code = hash_of([*sources("florence_tagger/florence", "gpu/kernels.py", "gpu/loading.py"), folder / MANIFEST])
    decides = (code, sorted(driver.versions.items()), chip, SIMULATION, version("openvino"))
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def run(driver: Driver, chip: Chip, folder: Path, seconds: float) -> dict[str, Any]:
    """Return the lines that the process prints that loads a model folder on a chip, and why it failed, if it did."""
    command, environment = driver.command("-m", "gpu.loading", str(folder)), driver.environment(chip)
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, errors = process.communicate(timeout=seconds)
        failure = f"ended with {process.returncode}: {last_line(errors)}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        failure = f"hangs: nothing in {seconds:.0f} s"
    except BaseException:
        process.kill()
        process.wait()
        raise
    # The lines that are complete: the process may have been ended in the midst of one.
    return {"lines": [line for line in printed.splitlines(keepends=True) if line.endswith("}\n")], "failure": failure}


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing said")


def compile_all(chips: Sequence[Chip], variants: Sequence[Variant], seconds: float) -> Iterator[Result]:
    """Set up what is needed and yield the results, with a line for each on stderr."""
    driver, started = set_up_driver(), time.monotonic()

    def report(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.0f} s  {text}", err=True)

    report(f"driver {driver.version}")
    for number, (variant, chip) in enumerate(product(variants, chips), 1):
        make_folder(variant, report)
        result = compile_for(driver, chip, variant, seconds)
        report(f"{number} of {len(variants) * len(chips)}: {variant.name} for {chip.name}: {summary(result)}")
        yield result


def with_kept(results: Sequence[Result], chips: Sequence[Chip], variants: Sequence[Variant]) -> list[Result]:
    """Return of all these chips and models what came of them, one of the results or one that is kept."""
    driver, now = set_up_driver(), {(result.model, result.chip): result for result in results}
    found = (
        now.get((variant.name, chip.name)) or compiled_before(driver, chip, variant)
        for variant, chip in product(variants, chips)
    )
    return [result for result in found if result is not None]


def summary(result: Result) -> str:
    """Return a result in a line."""
    return "; ".join(findings(result)) or "all is as it should be"


def made_with(driver: Driver) -> str:
    """Return the versions of what compiled."""
    compiler = driver.versions["libigc2"]
    return f"OpenVINO {version('openvino')}, Intel's driver {driver.version} with the compiler (IGC) {compiler}."


@click.command()
@click.option(
    "--chip", "chips", multiple=True, type=click.Choice([chip.name for chip in CHIPS]), help="All, unless told."
)
@click.option("--geometry", "geometries", multiple=True, type=click.Choice(GEOMETRIES), help="All, unless told.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)), help="All, unless told.")
@click.option("--seconds", default=1200.0, show_default=True, help="Most for a model on a chip.")
@click.option("--kept", is_flag=True, help="Compile nothing: what was compiled before, and has not changed since.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Page whose tables are made anew.")
def main(
    chips: tuple[str, ...],
    geometries: tuple[str, ...],
    precisions: tuple[str, ...],
    seconds: float,
    kept: bool,
    update: Path | None,
) -> None:
    """Compiles all graphs with Intel's driver, which simulates the chips, and prints what comes of it as tables.

    --update writes the tables of all chips and models that were compiled, now or before, and names those that were not.
    Ends with 1 where a graph does not compile, has operations that the plugin does not know, or moves large tensors in
    a step of the decoder.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started ends with it
    wanted_chips = [chip for chip in CHIPS if not chips or chip.name in chips]
    variants = [one for one in VARIANTS if one.geometry in (geometries or GEOMETRIES)]
    variants = [one for one in variants if one.precision in (precisions or PRECISIONS)]
    try:
        results = [] if kept else list(compile_all(wanted_chips, variants, seconds))
        if update:
            wanted_chips, variants = list(CHIPS), list(VARIANTS)
        results = with_kept(results, wanted_chips, variants)
        text = tables(results, wanted_chips, variants, made_with(set_up_driver()))
        if update:
            update.write_text(replace_section(update.read_text(), BEGIN, END, text))
        else:
            click.echo(text, nl=False)
    except (SetupError, TaggerError, subprocess.CalledProcessError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    sys.exit(any(findings(result) for result in results))


if __name__ == "__main__":
    main()
