package vif

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Counters are what went through a port, as its guest counts it.
type Counters struct {
	RxBytes, RxPackets, RxErrors, RxDropped int64
	TxBytes, TxPackets, TxErrors, TxDropped int64
}

// Counters reads the host end of a plugged port: what it sends, its guest receives.
func (v VIF) Counters() (Counters, error) {
	return v.counters(os.DirFS("/sys/class/net"))
}

func (v VIF) counters(devices fs.FS) (Counters, error) {
	device := v.HostDevice()
	if !fs.ValidPath(device) || strings.Contains(device, "/") {
		return Counters{}, fmt.Errorf("count port %s: %q is no name of a device", v.PortID, device)
	}
	var c Counters
	for file, counter := range map[string]*int64{
		"tx_bytes": &c.RxBytes, "tx_packets": &c.RxPackets, "tx_errors": &c.RxErrors, "tx_dropped": &c.RxDropped,
		"rx_bytes": &c.TxBytes, "rx_packets": &c.TxPackets, "rx_errors": &c.TxErrors, "rx_dropped": &c.TxDropped,
	} {
		b, err := fs.ReadFile(devices, path.Join(device, "statistics", file))
		if err != nil {
			return Counters{}, fmt.Errorf("count port %s: %w", v.PortID, err)
		}
		if *counter, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return Counters{}, fmt.Errorf("count port %s: %w", v.PortID, err)
		}
	}
	return c, nil
}
