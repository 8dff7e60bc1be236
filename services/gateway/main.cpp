#include "services/gateway/definition.hpp"

int main(int argc, char** argv) { return parlando::service::run(argc, argv, parlando::gateway::definition()); }
