package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/compute/glanceimage"
	"github.com/compute-agent/compute-agent/internal/control"
	"github.com/compute-agent/compute-agent/internal/hostinfo"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func controlSocket(c *config.Config) string { return filepath.Join(c.LXC.StateDir, control.SocketName) }

// startControl serves the control socket until the returned function is called.
func startControl(ctx context.Context, c *config.Config, h *host) (stop func(), err error) {
	listener, err := control.Listen(ctx, controlSocket(c))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := control.Serve(ctx, listener, h.control, h.collectLeftovers); err != nil {
			reqctx.Log(ctx).WithError(err).Error("control socket not served any more; restart the agent for its command line")
		}
	})
	return func() { cancel(); serving.Wait() }, nil
}

// collectLeftovers is what the control socket answers with once the agent is in touch with nova.
func (h *host) collectLeftovers(ctx context.Context, dry bool) ([]control.Leftover, error) {
	manager := h.manager.Load()
	if manager == nil {
		return nil, control.ErrStarting
	}
	found, err := manager.Leftovers(ctx, dry)
	out := make([]control.Leftover, 0, len(found))
	for _, l := range found {
		one := control.Leftover{Instance: l.Instance, Has: l.Has, Why: l.Why, Removable: l.Removable, Removed: l.Removed}
		if l.Err != nil {
			one.Error = l.Err.Error()
		}
		out = append(out, one)
	}
	return out, err
}

// imageFetcher asks Glance about an image with credentials of the configuration's, for
// an operator's command carries none. nil: no section has any.
func imageFetcher(c *config.Config, hostArch string) func(context.Context, string) (imagesync.Request, error) {
	section, auth := glanceCredentials(c)
	if section == "" {
		return nil
	}
	pool := &openstack.Pool{UserAgent: "compute-agent/" + version}
	options := serviceOptions("glance", &c.Glance.Auth, "v2", pool.Session(authOptions(section, auth)), nil)
	client := glance.New(glance.Options{Service: pool.Service(options), APIServers: c.Glance.APIServers, NumRetries: c.Glance.NumRetries})
	return func(ctx context.Context, id string) (imagesync.Request, error) {
		found, err := client.Show(adminContext(ctx), id)
		if err != nil {
			return imagesync.Request{}, &fetchError{section: section, err: err}
		}
		image := glanceimage.Image(&found)
		return glanceimage.Request(client, &image, hostArch), nil
	}
}

func adminContext(ctx context.Context) context.Context { return reqctx.With(ctx, reqctx.Admin()) }

// glanceCredentials finds the first section with credentials that may read images.
func glanceCredentials(c *config.Config) (string, *config.Auth) {
	for _, s := range []struct {
		section string
		auth    *config.Auth
	}{{"glance", &c.Glance.Auth}, {"service_user", &c.ServiceUser.Auth}, {"neutron", &c.Neutron.Auth}, {"placement", &c.Placement.Auth}} {
		if s.auth.Type != "" {
			return s.section, s.auth
		}
	}
	return "", nil
}

// fetchError says whose credentials Glance was asked with.
type fetchError struct {
	section string
	err     error
}

// Error implements error.
func (e *fetchError) Error() string {
	text := e.err.Error() + " (asked with the credentials of section [" + e.section + "])"
	if errors.Is(e.err, glance.ErrNotFound) || errors.Is(e.err, glance.ErrNotAuthorized) {
		text += "; a private image needs credentials of a user that may see it, in [glance]"
	}
	return text
}

// Unwrap gives the cause.
func (e *fetchError) Unwrap() error { return e.err }

// openImages gives the image store: the running agent's, or the store itself when no agent runs.
func openImages(ctx context.Context, c *config.Config) (control.Images, error) {
	client, err := control.Connect(ctx, controlSocket(c))
	if err == nil {
		return client, nil
	}
	if !isNoAgent(err) {
		return nil, err
	}
	if _, fake := c.Default.FakeHost(); fake {
		return noImages{}, nil
	}
	store, err := openStore(ctx, c)
	if err != nil {
		return nil, err
	}
	info, err := hostinfo.Read(ctx)
	if err != nil {
		_ = store.Close()
		return nil, err
	}
	return &control.Local{Store: store, Fetch: imageFetcher(c, info.Arch)}, nil
}
