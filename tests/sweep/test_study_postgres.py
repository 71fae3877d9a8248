"""Workers on PostgreSQL, where Debian's package `postgresql` and `psycopg` are installed; the server is started here and ended again."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from study_workers import one_is_killed

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed")


@pytest.fixture
def server():
    """The URL of a database of its own, reached by a socket in a folder of its own."""
    pytest.importorskip("psycopg")
    programs, root = PROGRAMS[-1].parent, os.getuid() == 0
    user = pwd.getpwnam("postgres").pw_name if root else pwd.getpwuid(os.getuid()).pw_name  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # a socket's path has to be short
    how = {"user": user, "cwd": folder} if root else {"cwd": folder}
    if root:
        shutil.chown(folder, user)
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    subprocess.run([programs / "initdb", "-D", folder / "data", "-A", "trust"], check=True, capture_output=True, **how)
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, **how)
    try:
        yield f"postgresql://{user}@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, **how)
        shutil.rmtree(folder)


def test_a_worker_that_is_killed_loses_nothing(server, text_file, tmp_path):
    one_is_killed(text_file, server, tmp_path)
