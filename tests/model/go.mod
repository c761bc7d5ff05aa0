module delay-wheel-model

go 1.19
