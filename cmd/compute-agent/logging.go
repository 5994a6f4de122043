package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"

	"github.com/compute-agent/compute-agent/config"
)

// quietLog keeps the log of the packages off a command's terminal: the command says what happens.
func quietLog() { logrus.StandardLogger().SetLevel(logrus.ErrorLevel) }

// setUpLogging applies the oslo.log options that the agent has. The returned function
// closes the log file.
func setUpLogging(c *config.Config) (closeLog func(), err error) {
	logger := logrus.StandardLogger()
	setLevel(logger, c)
	if c.Default.UseJSON {
		logger.SetFormatter(&logrus.JSONFormatter{})
	} else {
		logger.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02 15:04:05.000", DisableColors: true})
	}
	if c.Default.UseSyslog {
		hook, err := newSyslogHook("", "", c.Default.SyslogLogFacility) // the local daemon's socket
		if err != nil {
			return nil, err
		}
		logger.AddHook(hook)
	}
	if c.Default.UseJournal {
		if !journal.Enabled() {
			return nil, errors.New("log to the systemd journal ([DEFAULT] use_journal): this host has none")
		}
		logger.AddHook(journalHook{})
	}
	path := logPath(c)
	if path == "" {
		logger.SetOutput(os.Stderr)
		if (c.Default.UseSyslog || c.Default.UseJournal) && !c.Default.UseStderr {
			logger.SetOutput(io.Discard)
		}
		return func() {}, nil
	}
	// Nova's packages make it; they need not be on the node.
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make log directory ([DEFAULT] log_dir): %w", err)
	}
	f := &logFile{path: path, copied: c.Default.UseStderr}
	if err := f.reopen(); err != nil {
		return nil, err
	}
	logger.SetOutput(f)
	return f.close, nil
}

func setLevel(logger *logrus.Logger, c *config.Config) {
	logger.SetLevel(logrus.InfoLevel)
	if c.Default.Debug {
		logger.SetLevel(logrus.DebugLevel)
	}
}

// onHangup reopens the log file and applies [DEFAULT] debug anew at every SIGHUP, until the returned function is called. Without
// it the signal, which logrotate's scripts and "systemctl reload" send, would end the agent, and systemd would not start
// it again: to it that is a clean end (systemd.service(5), SuccessExitStatus).
func onHangup(load func() (*config.Config, error)) (stop func()) {
	hangups := make(chan os.Signal, 1) // one that is pending covers those after it
	signal.Notify(hangups, syscall.SIGHUP)
	var handling sync.WaitGroup
	handling.Go(func() {
		for range hangups {
			reloadLogging(logrus.StandardLogger(), load)
		}
	})
	return func() { signal.Stop(hangups); close(hangups); handling.Wait() }
}

func reloadLogging(logger *logrus.Logger, load func() (*config.Config, error)) {
	if f, ok := logger.Out.(*logFile); ok { // standard error needs no reopening
		if err := f.reopen(); err != nil {
			logger.WithError(err).Error("log file not reopened; logging goes on to the old one")
		}
	}
	c, err := load()
	if err != nil {
		logger.WithError(err).Error("configuration not read again; it stays as it was")
		return
	}
	setLevel(logger, c)
}

// logFile is the log, which can be moved away while it is written.
type logFile struct {
	path   string
	copied bool // to standard error as well

	mu sync.Mutex // guards f
	f  *os.File
}

// Write implements io.Writer.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.copied {
		_, _ = os.Stderr.Write(b) // the file is what counts
	}
	return l.f.Write(b)
}

// reopen goes on in the file that has the log's name now.
func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640) //nolint:gosec // the operator's own path and nova's own mode
	if err != nil {
		return fmt.Errorf("open log file ([DEFAULT] log_file, log_dir): %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close() // every line was written when it came
	}
	l.f = f
	return nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.f.Close() // as above
}

// logPath is where nova-compute would log with these options, under our own name; "" is
// standard error.
func logPath(c *config.Config) string {
	switch {
	case c.Default.LogFile != "" && filepath.IsAbs(c.Default.LogFile):
		return c.Default.LogFile
	case c.Default.LogFile != "":
		return filepath.Join(c.Default.LogDir, c.Default.LogFile)
	case c.Default.LogDir != "":
		return filepath.Join(c.Default.LogDir, "compute-agent.log")
	}
	return ""
}
