#include <CLI/CLI.hpp>

#include "tools/weir/commands.h"

int main(int argc, char** argv) {
  CLI::App app{"Weir divides one large mixture-of-experts language model fairly among its tenants."};
  app.require_subcommand(1);
  weir::tools::AddUp(app);
  weir::tools::AddInspect(app);
  weir::tools::AddGenerate(app);
  weir::tools::AddSim(app);
  app.footer("Example: weir inspect /models/DeepSeek-V3 --tp 8");
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {  // a command has said what went wrong
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return 0;
}
