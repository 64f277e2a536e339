package lag

import (
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
