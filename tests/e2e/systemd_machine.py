"""A systemd that runs nothing but us: PID 1 in namespaces of its own, with a copy of /etc. Root's tests only."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parent.parent.parent
SYSTEMD = Path("/lib/systemd/systemd")
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAM = "/srv/albireo-run"
"""`albireo-run` of this source tree, as the machine sees it."""

BOOT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /srv
mkdir /srv/source /srv/python /srv/packages /srv/etc /srv/units
mount --bind "$SOURCE" /srv/source
mount --bind "$PYTHON" /srv/python
mount --bind "$PACKAGES" /srv/packages
cat > /srv/albireo-run <<END
#!/bin/sh
export PYTHONPATH=/srv/source:/srv/packages PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/srv/python/lib
exec /srv/python/bin/$PROGRAM -m albireo.cli "\$@"
END
chmod 755 /srv /srv/albireo-run
cp -a /etc/. /srv/etc
rm -rf /srv/etc/systemd
mkdir -p /srv/etc/systemd/system
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToSyslog=no\n' > /srv/etc/systemd/journald.conf
mount --bind /srv/etc /etc
for folder in /run /tmp /var/lib /var/cache /var/tmp; do mount -t tmpfs -o mode=755 tmpfs $folder; done
chmod 1777 /tmp /var/tmp
for target in sysinit basic shutdown sockets network multi-user; do
  printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $target > /srv/units/$target.target
done
printf 'Wants=systemd-journald.socket multi-user.target\n' >> /srv/units/sysinit.target
cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald.socket /srv/units
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
export container=albireo-test SYSTEMD_UNIT_PATH=/etc/systemd/system:/srv/units
exec "$SYSTEMD" --system --unit=sysinit.target --show-status=0 --log-target=console --log-level=notice
"""


def why_not() -> str | None:
    """Why no machine can be made here."""
    if os.geteuid() != 0:
        return "needs root"
    programs = ("unshare", "nsenter", "setpriv", "systemctl", "journalctl", "mount", "curl")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"needs systemd and {', '.join(missing) or 'its programs'}"
    done = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else None


class Machine:
    """Boots at the start of a with block; all its processes are gone at the end."""

    def __enter__(self) -> Self:
        self._cgroups = [path / f"albireo-test-{os.getpid()}" for path in _own_cgroups()]
        for path in self._cgroups:
            path.mkdir()
        environment = {
            "PATH": SYSTEM_PATH,
            "SYSTEMD": str(SYSTEMD),
            "SOURCE": str(REPOSITORY),
            "PYTHON": sys.base_prefix,
            "PROGRAM": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "PACKAGES": sysconfig.get_path("purelib"),
        }
        # the shell goes into the cgroups before their namespace is made
        enter = "; ".join(f"echo $$ > {path}/cgroup.procs 2>/dev/null" for path in self._cgroups)
        unshare = f"exec setpriv --pdeathsig=KILL unshare {' '.join(NAMESPACES)} --fork --kill-child bash -c"
        self._process = subprocess.Popen(
            ["bash", "-c", f'{enter}; {unshare} "$1"', "boot", BOOT],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._wait_until_booted()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _wait_until_booted(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                self._init = int(children[0])
                if Path(f"/proc/{self._init}/comm").read_text().strip() == "systemd":
                    booted = self.run("systemctl", "is-active", "sysinit.target", check=False)
                    if booted.stdout.strip() == "active":
                        return
            time.sleep(0.1)
        raise AssertionError(f"systemd did not start: {self._process.poll()}")

    def run(self, *command: str, check: bool = True, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """What a command in there gave."""
        inside = ["nsenter", f"--target={self._init}", *NAMESPACES, "--wd=/"]
        done = subprocess.run(
            [*inside, "--", *command], capture_output=True, text=True, timeout=timeout_s, check=False,
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def write(self, path: str, text: str) -> None:
        """Writes a file in there; one that is there keeps its mode."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"', "sh", path, text)

    def property(self, name: str, unit: str = "albireo.service") -> str:
        """Of a unit, e.g. `StatusText`."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.output = self._process.communicate()[0]
        for path in self._cgroups:
            for _ in range(50):  # its processes are dying
                folders = sorted((folder for folder in path.rglob("*") if folder.is_dir()), reverse=True)
                try:
                    for folder in (*folders, path):
                        folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)


def _own_cgroups() -> list[Path]:
    """This process's folder in every hierarchy that is mounted."""
    mounted = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounted[""] = folder
        elif kind == "cgroup":
            mounted |= dict.fromkeys(options.split(","), folder)
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mount = mounted.get(controllers.split(",")[0])
        if mount is not None and "cpuset" not in controllers:  # an empty cpuset takes nobody in
            found.append(Path(mount + path))
    return found
