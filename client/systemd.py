"""Hardened systemd units for a site: SuperNode, executor and trainer, each a service of its own.

What the units hold to: the trainer has no network at all; SuperNode and executor cannot open the data; none can write
outside the site's folder or gain a privilege.
"""

import getpass
import sys
from pathlib import Path

from .home import Home
from .sitefile import SiteFile

_COMMON = """\
[Unit]
Description=fedretrain site: {what}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={python} -P -m {module} --home {home}
User={user}
Restart=always
RestartSec=2
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={home}
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
"""
_ADVICE = """\
# Save each part under its name in /etc/systemd/system, then:
#   systemctl daemon-reload && systemctl enable --now fedretrain-trainer fedretrain-supernode fedretrain-executor
#
# To run the trainer as a user of its own, so that SuperNode and executor cannot read the data whatever happens to them,
# take a group that both users are in (here "fedretrain"), and a user for the trainer (here "fedretrain-data"):
#   chgrp -R fedretrain {home} && find {home} -type d -exec chmod 2770 {{}} +
#   chown fedretrain-data {home}/keys/signing.pem
# In the trainer's unit: User=fedretrain-data, Group=fedretrain, UMask=0007. In site.toml, under [trainer]:
#   allowed_uids = [UID], the number that "id -u" prints for the other user.
"""
_NETWORK = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n"
_INSTALL = "\n[Install]\nWantedBy=multi-user.target\n"


def units(home: Home, site: SiteFile) -> dict[str, str]:
    """The units by file name, for ``/etc/systemd/system``."""
    trainer = "PrivateNetwork=yes\nRestrictAddressFamilies=AF_UNIX\nOOMScoreAdjust=500\n"
    if site.trainer.memory_mb is not None:
        trainer += f"MemoryMax={site.trainer.memory_mb}M\n"
    hidden = "".join(f"InaccessiblePaths=-{path}\n" for path in _data_paths(home, site))
    key = f"InaccessiblePaths=-{home.signing_key}\n"
    return {
        "fedretrain-trainer.service": _unit(home, "trainer", "client.trainer_main", trainer),
        "fedretrain-supernode.service": _unit(home, "SuperNode", "client.supernode", _NETWORK + hidden + key),
        "fedretrain-executor.service": _unit(home, "executor", "client.executor", _NETWORK + hidden + key),
    }


def text(home: Home, site: SiteFile) -> str:
    """All units in one text, with what to do with them."""
    parts = [_ADVICE.format(home=home.root)]
    parts += [f"# /etc/systemd/system/{name}\n{unit}" for name, unit in units(home, site).items()]
    return "\n".join(parts)


def _unit(home: Home, what: str, module: str, more: str) -> str:
    common = _COMMON.format(what=what, python=sys.executable, module=module, home=home.root, user=getpass.getuser())
    return common + more + _INSTALL


def _data_paths(home: Home, site: SiteFile) -> list[Path]:
    """Where the data lie, as far as site.toml says so."""
    named = getattr(site.data, "path", None)
    if named is None:
        return []
    return [(home.root / named).resolve()]
