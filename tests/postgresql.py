"""A real PostgreSQL server for tests, from Debian's or Ubuntu's package."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path


class Unavailable(Exception):
    """There is no PostgreSQL on this machine, and none can be installed; the message says why."""


def find_programs():
    """The folder with `initdb` and `postgres`, of the newest version where there are several; None without any."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


def install():
    """Install the distribution's package, as root, without its default cluster, where there is no server.

    Raises:
        Unavailable: apt-get failed.
    """
    with Path("/run/segdrop-postgresql.lock").open("w") as lock:
        # Parallel sessions wait here: half an installation has programs, but perhaps no user to run them.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find_programs():
            return
        settings = Path("/etc/postgresql-common/createcluster.conf")
        if not settings.exists():
            settings.parent.mkdir(exist_ok=True)
            settings.write_text("create_main_cluster = false\n")
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        # The settings written above count as edited by hand: without confold, dpkg would ask which ones to keep.
        keep = ["-o", "Dpkg::Options::=--force-confold"]
        for command in ([*apt, "update"], [*apt, *keep, "install", "-y", "--no-install-recommends", "postgresql"]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


class Server:
    """A server of its own on a Unix socket in `folder`, for whoever may read that folder; made by `server`.

    It writes nothing through to the disk and asks for no password. A socket, since a TCP port could be taken by another
    program while the server is stopped.
    """

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, folder
        # The server refuses to run as root.
        self.identity = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.identity:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "data")

    def _run(self, program, *arguments):
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self.identity,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed with exit code {done.returncode}: {done.stdout}\n{self.log()}")

    def log(self):
        """What the server has written so far."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def start(self):
        """Start the server, and return when it takes connections (30 seconds at most)."""
        options = "-F -c listen_addresses= -c unix_socket_directories=" + str(self.folder)
        self._run("pg_ctl", "start", "-w", "-t", "30", "-s", "-D", "data", "-l", "log", "-o", options)

    def stop(self, mode="fast"):
        """Cut all connections and stop; `start` goes on with what was committed. "immediate" stops like a crash."""
        self._run("pg_ctl", "stop", "-w", "-t", "30", "-s", "-D", "data", "-m", mode)

    def create(self, database):
        """Create an empty database; returns its URL."""
        self._run("createdb", "-h", str(self.folder), "-U", "postgres", database)
        return self.url(database)

    def url(self, database):
        """The SQLAlchemy URL of a database, for the psycopg driver."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"


@contextmanager
def server():
    """Install PostgreSQL where it is missing, start a new `Server`, and remove it with its data at the end.

    Raises:
        Unavailable: for `pytest.skip`.
    """
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install()
    programs = find_programs()
    if programs is None:
        raise Unavailable("No PostgreSQL server in /usr/lib/postgresql; install it with apt-get install postgresql.")
    # Not pytest's folder: the path of a socket has at most 107 characters, and the server's user must reach it.
    folder = Path(tempfile.mkdtemp(prefix="segdrop-postgresql-", dir="/tmp"))
    try:
        running = Server(programs, folder)
        try:
            running.start()
            yield running
        finally:
            if (folder / "data/postmaster.pid").exists():
                running.stop("immediate")
    finally:
        shutil.rmtree(folder)
