#include "services/tts/definition.hpp"

int main(int argc, char** argv) { return parlando::service::run(argc, argv, parlando::tts::definition()); }
