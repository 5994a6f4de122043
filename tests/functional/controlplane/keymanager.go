package controlplane

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// KeyManagerPackage is what StartKeyManager needs.
const KeyManagerPackage = "barbican-common"

// StartKeyManager starts Barbican beside the other services of a control plane that is up, for tests of signed images. Nothing but
// those needs it. It can be called again; Down ends it. Sessions of before do not find it in their catalog.
func (p *Plane) StartKeyManager(ctx context.Context) error {
	if !p.Release.KeyManager {
		return fmt.Errorf("start a key manager of %s: unknown", p.Release.Name)
	}
	if err := p.AddPackages(ctx, KeyManagerPackage); err != nil { // of a control plane that was installed without it
		return err
	}
	if err := p.once("key-manager", func() error { return p.seedKeyManager(ctx) }); err != nil {
		return err
	}
	if err := p.startService(uwsgiService("barbican-api", "barbican")); err != nil {
		return err
	}
	return p.waitPort(ctx, "barbican-api", 9311)
}

// seedKeyManager makes Barbican's database, its user and its place in the catalog.
func (p *Plane) seedKeyManager(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := p.SQL(ctx, "CREATE DATABASE IF NOT EXISTS barbican CHARACTER SET utf8;"); err != nil {
		return err
	}
	if err := p.logged(p.chrootCommand(ctx, "barbican", nil, "barbican-manage", "db", "upgrade"), "databases-barbican"); err != nil {
		return err
	}
	admin, err := p.Admin(ctx)
	if err != nil {
		return err
	}
	s := seeder{ctx: ctx, admin: admin}
	project := s.ensure("/projects", "project", object{"name": "service", "domain_id": "default"})
	s.serviceUser("barbican", project)
	s.catalog(cloud.KeyManager, "barbican", "http://127.0.0.1:9311")
	return s.err
}
