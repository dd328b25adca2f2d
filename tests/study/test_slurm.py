"""A notebook that fails is tried again and the study goes on, here and through Slurm; logs lie where README says."""

import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from toy_study import FIRST, SECOND, check_toy_study, executed, make_toy_study, run_toy_study

PLUGIN = "snakemake_executor_plugin_slurm"
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # where daemons lie
LACKING = [
    tool for tool in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue") if not shutil.which(tool, path=SBIN)
]
if not importlib.util.find_spec(PLUGIN):
    LACKING.append(PLUGIN)
CONFIG = """
ClusterName=toy
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=toy Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what, ready, folder, seconds=60):
    """Wait until `ready()`; if it never is, fail with what the daemons have written."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            pytest.fail(f"{what} did not start within {seconds} seconds\n{logs}")
        time.sleep(0.2)


@contextmanager
def daemon(*command, folder, **environment):
    """Run a daemon in the foreground and end it afterwards."""
    with (folder / f"{Path(command[0]).name}.out.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def slurm(folder):
    """A Slurm of one node, this machine, with everything it writes in a folder; gives variables for its users."""
    for part in ("state", "spool", "bin"):
        (folder / part).mkdir()
    controller_port, node_port = free_ports(2)
    host, config = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    names = {"host": host, "controller_port": controller_port, "node_port": node_port, "user": getpass.getuser()}
    config.write_text(CONFIG.format(folder=folder, **names))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    tools = {name: shutil.which(name, path=SBIN) for name in ("munged", "slurmctld", "slurmd", "sinfo")}
    places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    options = [f"--{option}={folder}/munge.{ending}" for option, ending in places.items()]
    # Snakemake's executor takes SLURM_CONF from its srun, which a real Slurm does not need: its file is in /etc.
    (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun")} "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    conf = {"SLURM_CONF": str(config), "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}"}

    def idle():
        command = [tools["sinfo"], "--noheader", "--format=%T"]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | conf).stdout.strip() == "idle"

    with ExitStack() as stack:
        stack.enter_context(daemon(tools["munged"], "--foreground", "--force", *options, folder=folder))
        wait_for("munged", (folder / "munge.socket").exists, folder)
        stack.enter_context(daemon(tools["slurmctld"], "-D", "-f", str(config), folder=folder, **conf))
        stack.enter_context(daemon(tools["slurmd"], "-D", "-f", str(config), "-N", host, folder=folder, **conf))
        wait_for("slurm", idle, folder)
        yield conf


@pytest.fixture
def toy(tmp_path):
    make_toy_study(tmp_path)
    return tmp_path


def test_a_failing_notebook_is_tried_again(toy):
    check_toy_study(toy, run_toy_study(toy, "--cores", "2", "--retries", "1"), attempts=2)


@pytest.mark.scale
def test_without_retries_the_next_call_goes_on(toy):
    stopped = run_toy_study(toy, "--cores", "2")
    assert stopped.returncode != 0
    assert "RuntimeError: the node went down" in stopped.stderr
    assert "the notebook's log in runs/" in stopped.stdout
    assert not (toy / executed(SECOND)).exists()
    before = (toy / executed(FIRST)).stat().st_mtime_ns
    check_toy_study(toy, run_toy_study(toy, "--cores", "2"), attempts=2)
    assert (toy / executed(FIRST)).stat().st_mtime_ns == before  # what was finished did not run again


@pytest.mark.skipif(bool(LACKING), reason=f"Slurm is not here: no {', '.join(LACKING)} (docs/clusters.md)")
def test_the_study_runs_through_slurm(toy):
    resources = ["slurm_partition=toy", "runtime=5", "mem_mb=500", "cpus_per_task=1"]
    options = [
        "--executor", "slurm", "--jobs", "2", "--retries", "1", "--slurm-no-account", "--latency-wait", "20",
        "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1",
        "--default-resources", *resources,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as place, slurm(Path(place)) as conf:
        run = run_toy_study(toy, *options, **conf)
    check_toy_study(toy, run, attempts=2)
    (kept,) = (toy / ".snakemake" / "slurm_logs" / f"rule_{SECOND}").rglob("*.log")  # of the attempt that failed
    assert "the node went down" in kept.read_text()
