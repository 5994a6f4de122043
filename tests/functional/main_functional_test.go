//go:build functional

package functional

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/compute-agent/compute-agent/tests/functional/lab"
)

var (
	netFlag  = flag.String("net", "", "linuxbridge or ovs; default what the control plane was last")
	hostFlag = flag.String("host", "", "host that the agent under test runs as, besides others in a shared control plane; default this machine's name")
)

// shared is what the tests share. A test that ends the agent starts it again. ours: this run has brought up the control plane.
var (
	shared *lab.Lab
	ours   bool
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		need("root")
		return
	}
	ctx := context.Background()
	err := setUp(ctx)
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "set up:", err)
	}
	if err := tearDown(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tear down:", err)
		code = 1
	}
	os.Exit(code)
}

// need ends the run for want of something: it fails where functional tests are asked for, and elsewhere says what is missing.
func need(what string) {
	fmt.Println("functional tests need", what)
	if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
		os.Exit(1)
	}
}

func setUp(ctx context.Context) error {
	var err error
	if shared, err = lab.New(*netFlag, "agent-under-test"); err != nil {
		return err
	}
	ours = !lab.Shared() && !shared.Plane.Running()
	if err := shared.UpForTests(ctx); err != nil {
		return err
	}
	if *hostFlag != "" {
		if err := shared.Join(ctx, *hostFlag); err != nil {
			return err
		}
	}
	if err := shared.Agent.Build(ctx); err != nil {
		return err
	}
	return shared.StartAgent(ctx)
}

func tearDown(ctx context.Context) error {
	if shared == nil || !ours && !lab.Shared() {
		return nil // what runs is somebody else's
	}
	err := shared.StopAgent(ctx)
	if lab.Shared() {
		return err
	}
	return errors.Join(err, shared.Plane.Down(ctx))
}
