package compute

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/nova/conductor"
	"github.com/compute-agent/compute-agent/internal/nova/novatest"
	"github.com/compute-agent/compute-agent/internal/nova/release"
)

func service(nova *novatest.Conductor) *Service {
	r, _ := release.ByName("zed")
	return NewService(conductor.New(nova, r), testHost, r.ServiceVersion, 10*time.Second)
}

func serviceRow(version int) novatest.Fields {
	return novatest.Fields{
		"id": novatest.Raw(7), "host": novatest.Raw(testHost), "binary": novatest.Raw(binary), "version": novatest.Raw(version), "report_count": novatest.Raw(41),
	}
}

func TestRegister(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setUp func(nova *novatest.Conductor)
		log   string
		fault bool
	}{
		{"first start", func(*novatest.Conductor) {}, "Service.get_by_host_and_binary\nService.create", false},
		{"same version", func(n *novatest.Conductor) { n.AddService(serviceRow(64)) }, "Service.get_by_host_and_binary", false},
		{"other version", func(n *novatest.Conductor) { n.AddService(serviceRow(61)) }, "Service.get_by_host_and_binary\nService.save version=64", false},
		{"made in the same moment", func(n *novatest.Conductor) {
			n.On("Service.create", func() { n.AddService(serviceRow(64)) })
		}, "Service.get_by_host_and_binary\nService.create\nService.get_by_host_and_binary", false},
		{
			"made and removed", func(n *novatest.Conductor) { n.Fail("Service.create", novatest.Failure("ServiceTopicExists")) },
			"Service.get_by_host_and_binary\nService.create\nService.get_by_host_and_binary", true,
		},
		{
			"too old", func(n *novatest.Conductor) { n.Fail("Service.create", novatest.Failure("ServiceTooOld")) },
			"Service.get_by_host_and_binary\nService.create", true,
		},
		{"no answer", func(n *novatest.Conductor) { n.Fail("Service.get_by_host_and_binary", errBoom) }, "Service.get_by_host_and_binary", true},
		{
			"version not set", func(n *novatest.Conductor) { n.AddService(serviceRow(61)); n.Fail("Service.save", errBoom) },
			"Service.get_by_host_and_binary\nService.save version=64", true,
		},
	} {
		nova := novatest.New()
		c.setUp(nova)
		s := service(nova)
		err := s.Register(t.Context())
		require.Equal(t, c.fault, err != nil, "%s: %v", c.name, err)
		requireLines(t, c.log, nova.Log())
		if err == nil {
			require.NotZero(t, s.Record().ID, c.name)
		}
	}
}

// TestReport: one report an interval, counting on from the stored number, through failures.
func TestReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nova := novatest.New()
		nova.AddService(serviceRow(64))
		s := service(nova)
		require.NoError(t, s.Register(t.Context()))
		require.NoError(t, s.Beat(t.Context()))
		require.False(t, s.Turns())
		nova.Fail("Service.save", nil, errors.New("cut"), errors.New("cut"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Report(ctx) }()
		time.Sleep(45 * time.Second)
		require.True(t, s.Turns(), "failing reports are reports")
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		requireLines(t, `
			Service.save report_count=42
			Service.save report_count=43
			Service.save report_count=44
			Service.save report_count=45
			Service.save report_count=46`, nova.LogOf("Service.save"))
		time.Sleep(70 * time.Second)
		require.True(t, s.Turns(), "a report may take a minute")
		time.Sleep(15 * time.Second)
		require.False(t, s.Turns(), "one that takes longer hangs")
	})
}
