// Package serialconsole serves guests' consoles on TCP ports of this host, as QEMU's serial ports do:
// raw bytes, one port a guest. nova-serialproxy connects a user's websocket to them.
//
// A port has no password of its own, and everybody on the host can connect to it. So a connection is
// taken only shortly after Admit, which the proxy's question whether the port is right leads to: the proxy
// asks it once for every token that it accepts. A new connection closes the one before it.
//
// Ports outlive the agent: after a restart a guest has the port that its users' tokens name.
package serialconsole
