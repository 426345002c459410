"""A unit by which systemd runs the server, with as little as it needs.

Invariants: the service can write to its federation's folder alone and gains no privileges; SIGTERM ends it as Ctrl-C
does, and what is left after that is killed with it.
"""

import shlex
import sys
from pathlib import Path
from typing import Final

from .federation import Federation

_UNIT: Final = """\
# /etc/systemd/system/fedretrain-server.service
#
# As root:
#   useradd --system --home-dir {folder} --shell /usr/sbin/nologin fedretrain
#   chown -R fedretrain: {folder}
#   fedretrain server up --systemd --folder {folder} > /etc/systemd/system/fedretrain-server.service
#   systemctl daemon-reload && systemctl enable --now fedretrain-server
# Then run the other commands as that user, for example:
#   sudo -u fedretrain fedretrain server status --folder {folder}
# Jobs, models and holdouts have to be readable for it; what lies in /home is not.

[Unit]
Description=fedretrain aggregation server, federation {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User=fedretrain
ExecStart={command}
{passphrase}Restart=on-failure
RestartSec=5
KillMode=mixed
TimeoutStopSec=30
UMask=0077
LimitNOFILE={files}

NoNewPrivileges=yes
{capabilities}PrivateDevices=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome={home}
ReadWritePaths={folder}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target"""

_CREDENTIAL: Final = """\
LoadCredential=passphrase:{file}
Environment=FEDRETRAIN_PASSPHRASE_FILE=%d/passphrase
"""
_LOW_PORT: Final = "AmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n"
_NO_CAPABILITIES: Final = "CapabilityBoundingSet=\n"


def unit(folder: Path, passphrase_file: Path | None = None) -> str:
    """The unit for the federation in ``folder``; raises ConfigurationError where there is none."""
    federation = Federation.open(folder)
    root, settings = federation.folder, federation.settings
    command = [sys.executable, "-P", "-m", "fedretrain.cli", "server", "up", "--folder", str(root)]
    at_home = any(path.parts[1:2] in {("home",), ("root",)} for path in (root, Path(sys.prefix).resolve()))
    return _UNIT.format(
        folder=shlex.quote(str(root)),
        name=settings.name,
        command=shlex.join(command).replace("%", "%%"),
        passphrase=_CREDENTIAL.format(file=passphrase_file.resolve()) if passphrase_file else "",
        capabilities=_LOW_PORT if settings.port < 1024 else _NO_CAPABILITIES,
        home="read-only" if at_home else "yes",
        files=4 * settings.limits.connections + 1024,
    )
