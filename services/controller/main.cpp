#include "services/controller/definition.hpp"

int main(int argc, char** argv) { return parlando::service::run(argc, argv, parlando::controller::definition()); }
