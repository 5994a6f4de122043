package config

// plugging declares os-vif's sections (vif_plug_ovs/ovs.py, vif_plug_linux_bridge/linux_bridge.py).
func (r *registry) plugging() {
	b := &r.config.OSVIFLinuxBridge
	s := r.section("os_vif_linux_bridge", "Plugging of ports into Linux bridges.")
	s.text(&b.FlatInterface, "flat_interface", "", "Interface put into bridges of flat networks.").was(defaultSection, "")
	s.integer(&b.NetworkDeviceMTU, "network_device_mtu", 1500, "MTU of devices on networks without one.").was(defaultSection, "").atLeast(68)
	s.text(&b.VLANInterface, "vlan_interface", "", "Interface put into bridges of VLAN networks.").was(defaultSection, "")

	o := &r.config.OSVIFOVS
	s = r.section("os_vif_ovs", "Plugging of ports into Open vSwitch.")
	s.enum(&o.DefaultQoSType, "default_qos_type", "linux-noop", "QoS type of new ports of the kernel's datapath.",
		"linux-htb", "linux-hfsc", "linux-sfq", "linux-codel", "linux-fq_codel", "linux-noop").from("2023.2")
	s.boolean(&o.IsolateVIF, "isolate_vif", false, "Whether a new port stays cut off until Neutron's agent wires it; not with OVN.")
	s.integer(&o.NetworkDeviceMTU, "network_device_mtu", 1500, "MTU of devices on networks without one.").was(defaultSection, "").atLeast(68)
	s.text(&o.OVSDBConnection, "ovsdb_connection", "tcp:127.0.0.1:6640", "Address of the Open vSwitch database: tcp:host:port, ssl:host:port or unix:path.")
	s.seconds(&o.OVSVsctlTimeout, "ovs_vsctl_timeout", 120, "Time for a change of that database; 0 is no limit.").was(defaultSection, "").atLeast(0)
	s.boolean(&o.PerPortBridge, "per_port_bridge", false, "Whether every port gets a bridge of its own; an experiment of os-vif's.")
}
