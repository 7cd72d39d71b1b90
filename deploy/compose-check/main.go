// compose-check FILE prints the model that `docker compose config` makes of a compose file, as JSON, with the variables of
// the environment. It uses the loader of docker compose itself, which can be built where docker cannot run.
// deploy/validate looks at what it prints.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: compose-check FILE")
	}
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithOsEnv, cli.WithResolvedPaths(true))
	if err != nil {
		fail(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		fail(err)
	}
	model, err := json.MarshalIndent(project, "", "  ")
	if err != nil {
		fail(err)
	}
	fmt.Println(string(model))
}

func fail(reason any) {
	fmt.Fprintf(os.Stderr, "compose-check: %v\n", reason)
	os.Exit(1)
}
