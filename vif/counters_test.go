package vif

import (
	"strconv"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestCounters(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{}
	for i, name := range []string{
		"tx_bytes", "tx_packets", "tx_errors", "tx_dropped", "rx_bytes", "rx_packets", "rx_errors", "rx_dropped",
	} {
		files["tap1/statistics/"+name] = &fstest.MapFile{Data: []byte(strconv.Itoa(i+1) + "\n")}
	}
	got, err := VIF{PortID: "p", Devname: "tap1"}.counters(files)
	require.NoError(t, err)
	require.Equal(t, Counters{RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}, got)

	for _, device := range []string{"tap2", "../tap1", "a/b"} {
		_, err = VIF{PortID: "p", Devname: device}.counters(files)
		require.Error(t, err, device)
	}
	files["tap1/statistics/rx_bytes"] = &fstest.MapFile{Data: []byte("many")}
	_, err = VIF{PortID: "p", Devname: "tap1"}.counters(files)
	require.Error(t, err)
}
