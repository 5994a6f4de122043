package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/compute-agent/compute-agent/config"
)

// quietLog keeps the log of the packages off a command's terminal: the command says what happens.
func quietLog() { logrus.StandardLogger().SetLevel(logrus.ErrorLevel) }

// setUpLogging applies the oslo.log options that the agent has. The returned function
// closes the log file.
func setUpLogging(c *config.Config) (closeLog func(), err error) {
	logger := logrus.StandardLogger()
	logger.SetLevel(logrus.InfoLevel)
	if c.Default.Debug {
		logger.SetLevel(logrus.DebugLevel)
	}
	if c.Default.UseJSON {
		logger.SetFormatter(&logrus.JSONFormatter{})
	} else {
		logger.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02 15:04:05.000", DisableColors: true})
	}
	path := logPath(c)
	if path == "" {
		logger.SetOutput(os.Stderr)
		return func() {}, nil
	}
	// Nova's packages make it; they need not be on the node.
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make log directory ([DEFAULT] log_dir): %w", err)
	}
	f := &logFile{path: path}
	if err := f.reopen(); err != nil {
		return nil, err
	}
	logger.SetOutput(f)
	return f.close, nil
}

// onHangup reopens the log file at every SIGHUP, until the returned function is called. Without
// it the signal, which logrotate's scripts and "systemctl reload" send, would end the agent, and systemd would not start
// it again: to it that is a clean end (systemd.service(5), SuccessExitStatus).
func onHangup() (stop func()) {
	hangups := make(chan os.Signal, 1) // one that is pending covers those after it
	signal.Notify(hangups, syscall.SIGHUP)
	var handling sync.WaitGroup
	handling.Go(func() {
		for range hangups {
			f, ok := logrus.StandardLogger().Out.(*logFile)
			if !ok {
				continue // standard error needs no reopening
			}
			if err := f.reopen(); err != nil {
				logrus.StandardLogger().WithError(err).Error("log file not reopened; logging goes on to the old one")
			}
		}
	})
	return func() { signal.Stop(hangups); close(hangups); handling.Wait() }
}

// logFile is the log, which can be moved away while it is written.
type logFile struct {
	path string

	mu sync.Mutex // guards f
	f  *os.File
}

// Write implements io.Writer.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
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
