#include "services/llm/definition.hpp"

int main(int argc, char** argv) {
  if (parlando::llm::is_rank(argc, argv)) return parlando::llm::run_rank(argc, argv);
  return parlando::service::run(argc, argv, parlando::llm::definition());
}
