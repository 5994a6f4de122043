package main

import (
	"fmt"
	"log/syslog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"
	logrussyslog "github.com/sirupsen/logrus/hooks/syslog"
)

// logIdentity is whose lines they are in a log that many write.
const logIdentity = "compute-agent"

// facilities of syslog, as [DEFAULT] syslog_log_facility names them, with or without LOG_ (oslo_log/log.py:_find_facility).
var facilities = map[string]syslog.Priority{
	"KERN": syslog.LOG_KERN, "USER": syslog.LOG_USER, "MAIL": syslog.LOG_MAIL, "DAEMON": syslog.LOG_DAEMON, "AUTH": syslog.LOG_AUTH,
	"SYSLOG": syslog.LOG_SYSLOG, "LPR": syslog.LOG_LPR, "NEWS": syslog.LOG_NEWS, "UUCP": syslog.LOG_UUCP, "CRON": syslog.LOG_CRON,
	"AUTHPRIV": syslog.LOG_AUTHPRIV, "FTP": syslog.LOG_FTP,
	"LOCAL0": syslog.LOG_LOCAL0, "LOCAL1": syslog.LOG_LOCAL1, "LOCAL2": syslog.LOG_LOCAL2, "LOCAL3": syslog.LOG_LOCAL3,
	"LOCAL4": syslog.LOG_LOCAL4, "LOCAL5": syslog.LOG_LOCAL5, "LOCAL6": syslog.LOG_LOCAL6, "LOCAL7": syslog.LOG_LOCAL7,
}

func newSyslogHook(network, address, facility string) (logrus.Hook, error) {
	priority, ok := facilities[strings.TrimPrefix(strings.ToUpper(facility), "LOG_")]
	if !ok {
		return nil, fmt.Errorf("log to syslog ([DEFAULT] syslog_log_facility): there is no facility %q", facility)
	}
	hook, err := logrussyslog.NewSyslogHook(network, address, priority, logIdentity)
	if err != nil {
		return nil, fmt.Errorf("log to syslog ([DEFAULT] use_syslog): %w", err)
	}
	return hook, nil
}

var journalPriorities = map[logrus.Level]journal.Priority{
	logrus.PanicLevel: journal.PriCrit, logrus.FatalLevel: journal.PriCrit, logrus.ErrorLevel: journal.PriErr,
	logrus.WarnLevel: journal.PriWarning, logrus.InfoLevel: journal.PriInfo, logrus.DebugLevel: journal.PriDebug, logrus.TraceLevel: journal.PriDebug,
}

// journalHook sends every line to systemd's journal.
type journalHook struct{}

// Levels implements logrus.Hook.
func (journalHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (journalHook) Fire(entry *logrus.Entry) error {
	line, err := entry.String()
	if err != nil {
		return err
	}
	return journal.Send(strings.TrimRight(line, "\n"), journalPriorities[entry.Level], map[string]string{"SYSLOG_IDENTIFIER": logIdentity})
}
