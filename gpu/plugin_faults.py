"""Which faults OpenVINO's GPU plugin has: `python -m gpu.plugin_faults`, on the emulated GPU.

Each is one that the product works around (`florence_tagger.florence.devices.WORKAROUNDS` names them), and a graph in
`gpu/reproduce.py`, which goes with the reports in docs/upstream/. Where one is gone with a newer plugin, its
work-around can go, too; `tests/test_gpu.py` says so.
"""

import subprocess
import sys

import click

from gpu.emulation import SetupError, run_on_emulated_gpu
from gpu.reproduce import FAULTS, GONE, THERE


def is_there(fault: str) -> bool:
    """Return whether the plugin errs, in a process of its own, which a fault may end.

    Raises:
        RuntimeError: the graph can't be run at all.
    """
    command = (sys.executable, "-m", "gpu.reproduce", fault)
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode in {THERE, GONE}:
        return ended.returncode == THERE
    if ended.returncode < 0:  # by a signal
        return True
    raise RuntimeError(ended.stderr)


@click.command()
@click.argument("fault", type=click.Choice(list(FAULTS)), required=False)
def main(fault: str | None) -> None:
    """Tell which faults the plugin has; of one that is named by the exit code, 3 where it is there and 0 where not."""
    try:
        run_on_emulated_gpu()
    except SetupError as exc:
        raise click.ClickException(str(exc)) from exc
    if fault is not None:
        sys.exit(THERE if FAULTS[fault]() else GONE)
    for name, one in FAULTS.items():
        click.echo(f"{'there' if is_there(name) else 'gone '}  {name}: {one.__doc__}")


if __name__ == "__main__":
    main()
