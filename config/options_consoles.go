package config

// consoles declares the consoles' sections. Containers have a serial console;
// of the others the agent only needs to know whether they are on.
func (r *registry) consoles() {
	c := r.config
	s := r.section("consoleauth", "Tokens of consoles.")
	s.seconds(&c.ConsoleAuth.TokenTTL, "token_ttl", 600, "Time that a token is valid.").atLeast(0).was(defaultSection, "console_token_ttl")
	s.boolean(&c.ConsoleAuth.EnforceSessionTimeout, "enforce_session_timeout", false, "Whether a session ends with its token.").from("2024.1")

	s = r.section("mks", "MKS consoles.")
	s.boolean(&c.MKS.Enabled, "enabled", false, "Whether MKS consoles are on in the deployment.")

	p := &c.SerialConsole
	s = r.section("serial_console", "Serial consoles.")
	s.boolean(&p.Enabled, "enabled", false, "Whether instances have a serial console.")
	s.uri(&p.BaseURL, "base_url", "ws://127.0.0.1:6083/", "Address of the proxy, for users.")
	bind(s, &p.PortRange, "port_range", kindPorts, "10000:20000", "Ports on which this host serves consoles.",
		func(_ *option, v string) (PortRange, error) { return parsePorts(v) })
	s.text(&p.ProxyclientAddress, "proxyclient_address", "127.0.0.1", "Address of this host, for the proxy.")

	s = r.section("spice", "SPICE consoles.")
	s.boolean(&c.Spice.Enabled, "enabled", false, "Whether SPICE consoles are on in the deployment. Containers have none.")

	s = r.section("vnc", "VNC consoles.")
	s.boolean(&c.VNC.Enabled, "enabled", true, "Whether VNC consoles are on in the deployment. Containers have none.").was(defaultSection, "vnc_enabled")
}
