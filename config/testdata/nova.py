"""Writes nova.json: names, defaults, choices and older names of nova's own options.

Run it with Debian 12's nova 26.2.2 (Zed), as root of that tree:
    chroot TREE python3 - < nova.py > nova.json
"""
import json
import sys

import nova.conf
from keystoneauth1 import loading
from oslo_concurrency import lockutils
from oslo_log import log
from oslo_messaging import transport
from oslo_messaging._drivers import amqp
from oslo_messaging._drivers import impl_rabbit
from oslo_messaging.notify import notifier
from oslo_messaging.rpc import client
from oslo_service import _options
from vif_plug_linux_bridge import linux_bridge
from vif_plug_ovs import ovs

CONF = nova.conf.CONF
log.register_options(CONF)
for opts, group in (
    (transport._transport_opts, None), (client._client_opts, None), (_options.service_opts, None),
    (impl_rabbit.rabbit_opts, "oslo_messaging_rabbit"), (amqp.amqp_opts, "oslo_messaging_rabbit"),
    (notifier._notifier_opts, "oslo_messaging_notifications"), (lockutils._opts, "oslo_concurrency"),
    (ovs.OvsPlugin.CONFIG_OPTS, "os_vif_ovs"), (linux_bridge.LinuxBridgePlugin.CONFIG_OPTS, "os_vif_linux_bridge"),
):
    CONF.register_opts(opts, group=group)
for group in ("neutron", "placement", "cinder", "service_user", "vendordata_dynamic_auth"):
    CONF.register_opts(loading.get_auth_plugin_conf_options("password"), group=group)

# Defaults that the machine or its distribution makes.
HERE = {("DEFAULT", "host"), ("DEFAULT", "my_ip"), ("DEFAULT", "console_host"), ("DEFAULT", "state_path")}


def default(opt):
    if opt.default is None:
        return ""
    if isinstance(opt.default, list):
        return ",".join(opt.default)
    return str(opt.default)


# Sections of other programs and of hypervisors.
OTHERS = {
    "api_database", "barbican", "barbican_service_user", "cache", "cyborg", "database", "hyperv", "ironic", "metrics",
    "oslo_messaging_metrics", "quota", "vault", "vmware", "wsgi", "zvm",
}


def choices(kind):
    return getattr(getattr(kind, "item_type", kind), "choices", None) or []


out = []
groups = [("DEFAULT", CONF._opts)] + [(g.name, g._opts) for g in CONF._groups.values()]
for group, opts in groups:
    if group in OTHERS:
        continue
    for info in opts.values():
        opt = info["opt"]
        entry = {
            "group": group,
            "name": opt.dest,
            "choices": [str(c) for c in choices(opt.type) if c is not None],
            "deprecated": sorted({(d.group or group, (d.name or opt.dest).replace("-", "_")) for d in opt.deprecated_opts}),
            "secret": opt.secret,
            "multi": opt.multi,
        }
        if (group, opt.dest) not in HERE:
            entry["default"] = default(opt)
        out.append(entry)
sys.stdout.write("[\n" + ",\n".join(json.dumps(e, sort_keys=True) for e in out) + "\n]\n")
