// Package config reads the agent's configuration: an operator's nova.conf as
// oslo.config reads it, plus the agent's own section [lxc].
//
// [Load] reads files, the environment and command-line values into a typed
// [Config] and reports every wrong value at once, with file, line, section,
// option and what is allowed. One registry (registry.go and the options_*.go
// files) declares each option once; parsing, validation, the sample file
// ([WriteSample]) and the documentation ([WriteDocs]) all come from it.
//
// Grammar and precedence are oslo.config's (oslo_config/iniparser.py, cfg.py,
// types.py); testdata/golden.json holds what the Python library itself answers.
//
// Order of reading, later wins:
//
//  1. /etc/nova/nova.conf, /etc/nova/nova-compute.conf and
//     /etc/compute-agent/compute-agent.conf, where they exist, unless
//     --config-file is given;
//  2. *.conf, sorted, of /etc/nova/nova.conf.d, /etc/nova/nova-compute.conf.d and
//     /etc/compute-agent/compute-agent.conf.d, where they exist, unless
//     --config-dir is given;
//  3. --config-file and --config-dir (its *.conf, sorted) in command-line order;
//  4. the environment: OS_<GROUP>__<OPTION>, current option names only;
//  5. values given on the command line ([Sources].Overrides).
//
// The package imports nothing of ours.
package config
