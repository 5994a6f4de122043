"""A stand-in L2 agent for the peer host.

Neutron binds a port only on a host with a live L2 agent, and the peer is not a real machine. This reports such an agent over
neutron's real RPC and, as the real one would, reports the devices of bound ports up, which makes neutron send
network-vif-plugged to nova.

    peer_l2.py HOST linuxbridge|ovs AUTH_URL PASSWORD PHYSICAL_LINK
"""
import sys
import time

import openstack
from oslo_config import cfg
from neutron.agent import rpc as agent_rpc
from neutron.common import config
from neutron.conf.agent import common as agent_config
from neutron_lib import context
from neutron_lib.agent import topics

host, net, auth_url, password, physical_link = sys.argv[1:]
config.register_common_config_options()
agent_config.register_agent_state_opts_helper(cfg.CONF)
config.init(["--config-file", "/etc/neutron/neutron.conf"])
config.setup_logging()

ctx = context.get_admin_context_without_session()
reports = agent_rpc.PluginReportStateAPI(topics.REPORTS)
plugin = agent_rpc.PluginApi(topics.PLUGIN)
state = {"host": host, "topic": "N/A", "start_flag": True}
if net == "linuxbridge":
    state.update(binary="neutron-linuxbridge-agent", agent_type="Linux bridge agent",
                 configurations={"interface_mappings": {"physnet1": physical_link}, "bridge_mappings": {},
                                 "tunnel_types": [], "tunneling_ip": None, "devices": 0})
else:
    state.update(binary="neutron-openvswitch-agent", agent_type="Open vSwitch agent",
                 configurations={"bridge_mappings": {"physnet1": "br-phys"}, "integration_bridge": "br-int",
                                 "datapath_type": "netdev", "tunnel_types": [], "tunneling_ip": None,
                                 "ovs_hybrid_plug": False, "devices": 0})


def device(port_id):
    return ("lb-" + host, "tap" + port_id[:11]) if net == "linuxbridge" else ("ovs-agent-" + host, port_id)


reports.report_state(ctx, state, True)
state.pop("start_flag")
print("ready", flush=True)
cloud = openstack.connect(auth_url=auth_url, username="neutron", password=password, project_name="service",
                          user_domain_name="Default", project_domain_name="Default", region_name="RegionOne")
reported = time.time()
while True:
    try:
        if time.time() - reported > 25:
            reports.report_state(ctx, state, True)
            reported = time.time()
        ports = cloud.network.get("/ports?binding:host_id=%s&status=DOWN&admin_state_up=true" % host).json()["ports"]
        for port in ports:
            if port["device_owner"].startswith("compute:") and port["binding:vif_type"] not in ("unbound", "binding_failed"):
                agent, name = device(port["id"])
                plugin.update_device_up(ctx, name, agent, host)
    except Exception as e:  # the control plane may restart
        print("poll:", e, flush=True)
        time.sleep(2)
    time.sleep(0.4)
