package main

import (
	"path/filepath"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/hostshare"
)

// openShares opens the directories of this host that servers may have.
func openShares(c *config.Config) (*hostshare.Store, error) {
	shares := make([]hostshare.Share, 0, len(c.LXC.Shares))
	for _, s := range c.LXC.Shares {
		shares = append(shares, hostshare.Share(s))
	}
	return hostshare.Open(filepath.Join(c.LXC.StateDir, "shares"), shares)
}

// checkShares tells which of the configured directories could not be given to a server of this host now.
func checkShares(c *config.Config) []config.Finding {
	var findings []config.Finding
	for _, s := range c.LXC.Shares {
		if err := hostshare.Find(hostshare.Share(s)); err != nil {
			findings = append(findings, config.Finding{
				Section: "lxc", Option: "shares", Value: s.Name, Message: err.Error(), Remedy: "make the directory; servers whose flavor wants it are built on other hosts meanwhile",
			})
		}
	}
	return findings
}
