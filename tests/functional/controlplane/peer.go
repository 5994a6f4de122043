package controlplane

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// PeerHost is the compute host that the distribution's nova-compute runs as.
const PeerHost = "peer"

// StartPeer starts the distribution's nova-compute with its fake driver, and a stand-in for that host's L2 agent. It returns when
// servers can be scheduled to PeerHost.
func (p *Plane) StartPeer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := p.startService(service{"peer-l2", "neutron", []string{"HOME=/var/lib/neutron", "PYTHONUNBUFFERED=1"}, []string{
		"/usr/bin/python3", "/etc/lab/peer_l2.py", PeerHost, p.Net, AuthURL, Password, physicalLink,
	}})
	if err != nil {
		return err
	}
	if err := p.waitLine(ctx, "peer-l2", "ready"); err != nil {
		return err
	}
	if err := p.LaunchPeer(); err != nil {
		return err
	}
	return p.WaitCompute(ctx, PeerHost)
}

// LaunchPeer starts the process of the peer, which StartPeer has started before, and does not wait.
func (p *Plane) LaunchPeer() error {
	return p.startService(novaModule("peer", "nova-compute", "compute", "--config-file=/etc/lab/nova-compute.conf"))
}

// StopPeer ends the peer and its stand-in.
func (p *Plane) StopPeer(ctx context.Context) error {
	return p.stopServices(ctx, 10*time.Second, "peer", "peer-l2")
}

// PeerPID is the process of the peer, 0 when it does not run.
func (p *Plane) PeerPID() int { return p.pid("peer") }

// WaitCompute waits until the scheduler may choose the compute host: its service is up and it is mapped to the cell.
func (p *Plane) WaitCompute(ctx context.Context, hostname string) error {
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	return cloud.Poll(ctx, 200*time.Millisecond, "compute host "+hostname, func() (bool, error) {
		hypervisors, err := admin.Hypervisors(ctx) // lists mapped hosts only
		if err != nil {
			return false, err
		}
		for _, h := range hypervisors {
			if h.Hostname == hostname || h.Service.Host == hostname {
				return h.State == "up" && h.Status == "enabled", nil
			}
		}
		return false, nil
	})
}
