package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/config"
)

func TestLogFileMovedAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.log")
	f := &logFile{path: path}
	require.NoError(t, f.reopen())
	defer f.close()
	write := func(line string) {
		_, err := fmt.Fprintln(f, line)
		require.NoError(t, err)
	}
	write("one")
	require.NoError(t, os.Rename(path, path+".1"))
	write("two")
	require.NoError(t, f.reopen())
	write("three")
	for file, want := range map[string]string{path + ".1": "one\ntwo\n", path: "three\n"} {
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.NoError(t, os.Rename(filepath.Dir(path), filepath.Dir(path)+".away"))
	require.Error(t, f.reopen())
	write("four")
}

func TestReloadLogging(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.log")
	f := &logFile{path: path}
	require.NoError(t, f.reopen())
	defer f.close()
	logger := logrus.New()
	logger.SetOutput(f)
	require.NoError(t, os.Rename(path, path+".1"))
	c := &config.Config{}
	c.Default.Debug = true
	reloadLogging(logger, func() (*config.Config, error) { return c, nil })
	require.Equal(t, logrus.DebugLevel, logger.GetLevel())
	reloadLogging(logger, func() (*config.Config, error) { return nil, errors.New("line 3 is no option") })
	require.Equal(t, logrus.DebugLevel, logger.GetLevel(), "what cannot be read changes nothing")
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(got), "line 3 is no option", "the new file is written")
}

func TestSyslog(t *testing.T) {
	t.Parallel()
	path := socketPath(t, "log")
	daemon, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer func() { require.NoError(t, daemon.Close()) }()
	for facility, want := range map[string]string{"LOG_USER": "<12>", "local3": "<156>"} { // facility * 8 + warning
		hook, err := newSyslogHook("unixgram", path, facility)
		require.NoError(t, err)
		logger := logrus.New()
		logger.SetOutput(io.Discard)
		logger.AddHook(hook)
		logger.WithField("instance", "one").Warning("it is full")
		require.NoError(t, daemon.SetReadDeadline(time.Now().Add(time.Minute)))
		buffer := make([]byte, 1000)
		n, err := daemon.Read(buffer)
		require.NoError(t, err)
		require.Contains(t, string(buffer[:n]), want)
		require.Contains(t, string(buffer[:n]), "compute-agent[")
		require.Contains(t, string(buffer[:n]), "it is full")
	}
	_, err = newSyslogHook("unixgram", path, "LOG_LOCAL9")
	require.ErrorContains(t, err, "syslog_log_facility")
	_, err = newSyslogHook("unixgram", path+"-not", "user")
	require.ErrorContains(t, err, "use_syslog")
}
