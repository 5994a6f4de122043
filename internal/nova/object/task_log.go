package object

// TaskLog records a periodic task that runs once for a period (nova/objects/task_log.py).
type TaskLog struct {
	Header
	ID              int      `nova:"id"`
	TaskName        string   `nova:"task_name"`
	State           string   `nova:"state"`
	Host            string   `nova:"host"`
	PeriodBeginning DateTime `nova:"period_beginning"`
	PeriodEnding    DateTime `nova:"period_ending"`
	Message         string   `nova:"message"`
	TaskItems       int      `nova:"task_items"`
	Errors          int      `nova:"errors"`
	Timestamps
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *TaskLog) UnmarshalJSON(b []byte) error { return decode(b, o, "TaskLog") }

// MarshalJSON implements json.Marshaler.
func (o TaskLog) MarshalJSON() ([]byte, error) { return encode(&o) }
