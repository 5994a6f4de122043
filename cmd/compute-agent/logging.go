package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640) //nolint:gosec // the operator's own path and nova's own mode
	if err != nil {
		return nil, fmt.Errorf("open log file ([DEFAULT] log_file, log_dir): %w", err)
	}
	logger.SetOutput(io.Writer(f))
	return func() { _ = f.Close() }, nil
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
