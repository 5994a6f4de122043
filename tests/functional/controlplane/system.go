package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// System makes a Debian 12 system of the packages beside the control plane, for programs whose life is a test's, the first time that it is
// asked for one of the name, and returns its root. Install has been before. more are suites that the mirror has besides those of Debian 12.
func (p *Plane) System(ctx context.Context, name string, packages []string, more ...string) (string, error) {
	root := p.path("system-" + name)
	return root, p.once("system-"+name, func() error {
		p.Say("installing %s beside the control plane", strings.Join(packages, ", "))
		if err := p.copyMinbase(ctx, guestSuite, root); err != nil {
			return err
		}
		for _, suite := range more {
			if err := addSuite(ctx, root, suite); err != nil {
				return err
			}
		}
		return p.aptInstall(ctx, root, "apt-"+name, packages)
	})
}

// addSuite has apt take packages of a suite that is not Debian 12's own one, such as its backports.
func addSuite(ctx context.Context, root, suite string) error {
	from, err := sources(ctx, guestSuite)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(from, func(s source) bool { return s.release == guestSuite })
	return errors.Join(
		os.WriteFile(filepath.Join(root, "etc/apt/sources.list.d", suite+".list"), fmt.Appendf(nil, "deb %s %s main\n", from[i].uri, suite), 0o644),
		os.WriteFile(filepath.Join(root, "etc/apt/preferences.d", suite), fmt.Appendf(nil, "Package: *\nPin: release n=%s\nPin-Priority: 500\n", suite), 0o644),
	)
}
