"""A Slurm of one node on this machine: munged, slurmctld and slurmd with their own configuration.

    with cluster(folder) as environment: ...

Needs root, and Debian's packages slurm-wlm and munge, which `python -m tests.outside` installs.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.outside import program

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which Slurm's commands speak to the cluster."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755, parents=True)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    settings = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    ports = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
    settings.write_text(CONFIGURATION.format(folder=folder, host=host, **ports))
    environment = {**os.environ, "SLURM_CONF": str(settings)}
    daemons = []
    try:
        for command in (
            [program("munged"), "--foreground", "--force", f"--socket={folder}/munge/socket",
             f"--key-file={key}", f"--pid-file={folder}/munge/pid",
             f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"],
            [program("slurmctld"), "-D", "-f", str(settings)],
            [program("slurmd"), "-D", "-f", str(settings)],
        ):  # fmt: skip
            with open(folder / f"{os.path.basename(command[0])}.log", "w") as log:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            if "munged" in command[0]:
                _until(lambda: (folder / "munge/socket").exists(), folder)
        _until(lambda: "idle" in _ask("sinfo", environment), folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def _until(there, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not there():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"the cluster did not start:\n{logs}")
        time.sleep(0.2)


def _ask(command: str, environment: dict[str, str]) -> str:
    return subprocess.run([command], env=environment, capture_output=True, text=True).stdout


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
