"""Faults of OpenVINO's GPU plugin on the emulated GPU: `python -m gpu.plugin_faults`.

The product has a workaround for each fault (`florence_tagger.florence.devices.WORKAROUNDS`), and `gpu/reproduce.py`,
which is attached to the reports in docs/upstream/, has a graph that shows it. If a newer plugin has fixed a fault,
`tests/test_gpu.py` fails and its workaround can be removed.
"""

import subprocess
import sys

import click

from gpu.emulation import SetupError, run_on_emulated_gpu
from gpu.reproduce import FAULTS, GONE, THERE


def has_fault(fault: str) -> bool:
    """Return True if the plugin has a fault, checked in a separate process, which the fault may crash.

    Raises:
        RuntimeError: the graph can't be run.
    """
    command = (sys.executable, "-m", "gpu.reproduce", fault)
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode in {THERE, GONE}:
        return process.returncode == THERE
    if process.returncode < 0:  # killed by a signal
        return True
    raise RuntimeError(process.stderr)


@click.command()
@click.argument("fault", type=click.Choice(list(FAULTS)), required=False)
def main(fault: str | None) -> None:
    """Print the faults that the plugin has; for a single fault, exit with 3 if the plugin has it and 0 if not."""
    try:
        run_on_emulated_gpu()
    except SetupError as exc:
        raise click.ClickException(str(exc)) from exc
    if fault is not None:
        sys.exit(THERE if FAULTS[fault]() else GONE)
    for name, check in FAULTS.items():
        click.echo(f"{'there' if has_fault(name) else 'gone '}  {name}: {check.__doc__}")


if __name__ == "__main__":
    main()
